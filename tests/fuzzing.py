"""Damaged and hostile files, drawn by number: what each does to a checkpoint or a model file, and the law that holds.

The law: reading ends in a model or in one SortifyError of one line; nothing that a file asks for is run; no file is
changed, in the folder or beside it; memory and time stay small.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import pickletools
import random
import shutil
import signal
import stat
import struct
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import golden_checkpoints as golden
import torch
import transformers
from torch import nn

from sortify import load, load_source
from sortify.errors import SortifyError
from sortify.models.manifest import MAIN, describe

SECONDS, BYTES = 60, 2**30
"""What a case may take: of time, and of memory beyond what the process held before."""
ACTS = {"os.system", "subprocess.Popen", "os.posix_spawn", "os.exec", "os.fork", "socket.connect", "webbrowser.open"}
CANARY = "canary"


@dataclass(frozen=True)
class Outcome:
    """What reading a case came to: loaded or refused, or a fault (ran, traceback, changed, memory, slow)."""

    kind: str
    change: str
    status: str
    note: str
    seconds: float
    megabytes: float

    @property
    def fault(self) -> bool:
        return self.status not in ("loaded", "refused")


class Slow(BaseException):
    """Time is up."""


# -- what there is to damage --------------------------------------------------------------------------------------


def make_material(folder: Path) -> None:
    """Sound checkpoints and model files: every one loads."""
    for version in golden.FOLDER.iterdir():
        for name in version.iterdir():
            shutil.copytree(name, folder / f"checkpoint-{version.name}-{name.name}")
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Embedding(9, 8), nn.TransformerEncoderLayer(8, 2, 16), nn.BatchNorm1d(5), nn.Linear(8, 3))
    layers.register_buffer("positions", torch.arange(5).expand(1, -1))
    for name in ("pickled", "program", "saved", "binary"):
        (folder / name).mkdir()
    torch.save(layers, folder / "pickled" / "model.pt")
    small = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 2)).eval()
    shapes = ({0: torch.export.Dim.AUTO},)
    torch.export.save(
        torch.export.export(small, (torch.rand(3, 4),), dynamic_shapes=shapes), folder / "program" / "model.pt2"
    )
    sizes = {"vocab_size": 99, "hidden_size": 16, "intermediate_size": 16, "max_position_embeddings": 16}
    bert = transformers.BertModel(transformers.BertConfig(num_hidden_layers=1, num_attention_heads=2, **sizes))
    bert.save_pretrained(folder / "saved")
    shutil.copy(folder / "saved" / "config.json", folder / "binary")
    torch.save(bert.state_dict(), folder / "binary" / "pytorch_model.bin")


def read(kind: str, folder: Path, verify: bool) -> None:
    """Load, and touch all that was loaded."""
    if kind.startswith("checkpoint"):
        model: Any = load(folder, golden.Router() if kind.endswith("parts") else None, verify=verify)
        for _, part in model.captured_parts():
            assert part.blueprint.sorted_runners["train"]
    else:
        names = {"pickled": f"{folder}/model.pt", "program": f"{folder}/model.pt2"}
        found = load_source(names.get(kind, f"transformers/{folder}"), input="2x4")
        model = found.module if found.module is not None else found.program.module(check_guards=False)
    for tensor in model.state_dict().values():
        if not tensor.is_meta:
            float(tensor.double().sum())


# -- what is done to it -------------------------------------------------------------------------------------------

Change = Callable[[random.Random, Path], None]


def _pick(draw: random.Random, folder: Path, *ends: str) -> Path:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name.endswith(ends or ("",)))
    return draw.choice(files or sorted(path for path in folder.rglob("*") if path.is_file()))


def _bytes(change: Callable[[random.Random, bytearray], bytes | bytearray]) -> Change:
    def changed(draw: random.Random, folder: Path) -> None:
        file = _pick(draw, folder)
        file.write_bytes(bytes(change(draw, bytearray(file.read_bytes()))))

    return changed


def flip(draw: random.Random, data: bytearray) -> bytearray:
    for _ in range(draw.choice([1, 1, 2, 8, 64])):
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8) if data else 0
    return data


def cut(draw: random.Random, data: bytearray) -> bytearray:
    return data[: draw.randrange(len(data) + 1)]


def blank(draw: random.Random, data: bytearray) -> bytearray:
    start = draw.randrange(len(data))
    end = min(len(data), start + draw.choice([1, 8, 100, 5000]))
    data[start:end] = bytes([draw.choice([0, 0, 255])]) * (end - start)
    return data


def move(draw: random.Random, data: bytearray) -> bytearray:
    a, b, c = sorted(draw.randrange(len(data) + 1) for _ in range(3))
    return data[:a] + data[b:c] + data[a:b] + data[c:]


def repeat(draw: random.Random, data: bytearray) -> bytearray:
    a, b = sorted(draw.randrange(len(data) + 1) for _ in range(2))
    return data[:b] + data[a:b] * draw.choice([1, 3]) + data[b:]


def number(draw: random.Random, data: bytearray) -> bytearray:
    """A number of four or eight bytes becomes an extreme one."""
    form = draw.choice(["<I", "<Q"])
    at = draw.randrange(max(1, len(data) - 8))
    value = draw.choice([0, 1, 2**31 - 1, 2**31, 2**32 - 1, *([2**63 - 1, 2**40] if form == "<Q" else [])])
    data[at : at + struct.calcsize(form)] = struct.pack(form, value)
    return data


def lose(draw: random.Random, folder: Path) -> None:
    _pick(draw, folder).unlink()


def swap(draw: random.Random, folder: Path) -> None:
    """Two files change places, of this folder or of another one's."""
    file = _pick(draw, folder)
    file.write_bytes(_pick(draw, draw.choice([folder, folder.parent / "other"])).read_bytes())


def link(draw: random.Random, folder: Path) -> None:
    file = _pick(draw, folder)
    file.unlink()
    beside = folder.parent / "neighbour"
    file.symlink_to(draw.choice([beside / "precious.json", beside, "/dev/zero", "/dev/stdin", file, "/proc/self/mem"]))


def pipe(draw: random.Random, folder: Path) -> None:
    file = _pick(draw, folder)
    file.unlink()
    os.mkfifo(file)


def waiting(draw: random.Random, folder: Path) -> None:
    """Something stands where a save that was cut short keeps its files."""
    place, beside, name = folder / ".pending", folder.parent / "neighbour", _pick(draw, folder).name
    if draw.random() < 0.5:
        place.symlink_to(beside)
    else:
        place.mkdir()
        (place / ".gone").write_text(json.dumps(["../neighbour/precious.json", "graph.json"]))
        (place / name).symlink_to(beside / "precious.json")


HOSTILE = (
    *(None, True, -1, 0, 1, 2**31, 10**18, 10**30, 1e308, -0.5, "", "x", [], {}, [[]], "../neighbour/precious.json"),
    *("__import__('os').system('touch canary')", "os.system", "aten.from_file.default", "a" * 10_000, "9**9**9**9"),
    *("torch.ops.aten.from_file.default", "(" * 3000, {"__enum__": "os.system"}, "image.read_file.default", "\x00"),
    *("hf://somebody/model", "trust_remote_code", "module", {"node": "x"}, [10**9, 10**9], "inf", "Pow(9, 99999999)"),
)


def _spots(value: Any) -> Iterator[tuple[Any, Any]]:
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from _spots(value[key])


def edit(draw: random.Random, data: Any) -> Any:
    """JSON with entries that are others, missing, doubled, or in each other's places."""
    for _ in range(draw.choice([1, 1, 2, 4])):
        spots = list(_spots(data))
        if not spots:
            return draw.choice(HOSTILE)
        (holder, key), (there, other) = draw.choice(spots), draw.choice(spots)
        way = draw.randrange(5)
        if way == 0:
            del holder[key]
        elif way == 1:
            holder[key] = json.loads(json.dumps(there[other]))
        elif way == 2 and isinstance(holder, list):
            holder.extend(json.loads(json.dumps(holder[-3:])))
        elif way == 3 and type(holder[key]) is int:
            holder[key] += draw.choice([-1, 1, 10**6, 2**40])
        else:
            holder[key] = draw.choice(HOSTILE)
    return data


def json_edit(draw: random.Random, folder: Path) -> None:
    file = _pick(draw, folder, ".json")
    try:
        data = json.loads(file.read_text())
    except ValueError:
        return
    file.write_text(json.dumps(edit(draw, data)))


def header_edit(draw: random.Random, folder: Path) -> None:
    """The header of a safetensors file, with its length told anew."""
    file = _pick(draw, folder, ".safetensors")
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    try:
        header = json.loads(data[8 : 8 + length])
    except ValueError:
        return
    new = json.dumps(edit(draw, header)).encode()
    file.write_bytes(len(new).to_bytes(8, "little") + new + data[8 + length :])


class Calls:
    """Pickles to a call."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> Any:
        return self.call


def hostile_pickle(draw: random.Random) -> bytes:
    touch = f"touch {CANARY}"
    payload = draw.choice(
        [
            *(Calls(os.system, touch), Calls(eval, f"open({CANARY!r}, 'w')"), Calls(exec, "raise SystemExit")),
            *(Calls(open, CANARY, "w"), Calls(getattr, nn.Linear(1, 1), "forward"), Calls(__import__, "antigravity")),
            *(Calls(bytearray, 2**34), Calls(torch.Tensor, 2**34), Calls(torch.empty, (2**34,)), Calls(range, 2**60)),
            *(Calls(nn.Linear, 2**17, 2**17), Calls(torch.hub.load, "a/b", "c"), Calls(torch.load, "model.pt")),
            Calls(torch._tensor._rebuild_from_type_v2, os.system, torch.Tensor, (touch,), {}),
            Calls(torch._utils._rebuild_meta_tensor_no_storage, torch.float32, (2**40,), (1,), False),
            Calls(transformers.AutoModel.from_pretrained, "somebody/something"),
        ]
    )
    return pickle.dumps(draw.choice([payload, {"weight": payload}, [payload, nn.ReLU()]]), draw.choice([0, 2, 2, 2, 4]))


def spliced_pickle(draw: random.Random, data: bytes) -> bytes:
    """Instructions of a pickle that are left out, doubled, moved, or of other numbers and names."""
    starts = [place for _, _, place in pickletools.genops(data)]
    pieces = [data[a:b] for a, b in zip(starts, [*starts[1:], len(data)], strict=True)]
    for _ in range(draw.choice([1, 1, 2, 3])):
        at = draw.randrange(1, len(pieces))
        way = draw.randrange(6)
        if way == 0:
            del pieces[at]
        elif way == 1:
            pieces.insert(at, pieces[draw.randrange(len(pieces))])
        elif way == 2:
            numbers = [i for i, piece in enumerate(pieces) if piece[:1] in (b"K", b"M", b"J")]
            if numbers:
                pieces[draw.choice(numbers)] = draw.choice(
                    [b"J\xff\xff\xff\x7f", b"K\x00", b"J\xff\xff\xff\xff", b"K\xff"]
                )
        elif way == 3:
            names = ["os\nsystem", "torch\nload", "builtins\nbytearray", "torch\nTensor", "torch\nDoubleStorage"]
            pieces.insert(at, f"c{draw.choice(names)}\n".encode())
        elif way == 4:
            pieces.insert(at, draw.choice([b"R", b"b", b"\x81", b"0", b"2", b"Q", b"P1\n", b"i", b"\x93", b"s", b")"]))
        else:
            pieces[at] = pieces[at][:1] + bytes(draw.randrange(256) for _ in pieces[at][1:])
        if len(pieces) < 3:
            break
    return b"".join(pieces)


def record_edit(draw: random.Random, folder: Path) -> None:
    """A record of an archive is another, or there are more of them."""
    file = _pick(draw, folder, ".pt", ".pt2", ".bin")
    try:
        with zipfile.ZipFile(file) as archive:
            records = [(entry, archive.read(entry)) for entry in archive.infolist()]
    except (zipfile.BadZipFile, OSError, NotImplementedError):
        return
    wanted = draw.choice([".pkl", ".json", ".json", ""]) if file.suffix == ".pt2" else draw.choice([".pkl", ".pkl", ""])
    chosen = draw.choice([i for i, (entry, _) in enumerate(records) if wanted in entry.filename] or [0])
    entry, data = records[chosen]
    if entry.filename.endswith(".pkl"):
        data = hostile_pickle(draw) if draw.random() < 0.4 else spliced_pickle(draw, data)
    elif entry.filename.endswith(".json"):
        data = json.dumps(edit(draw, json.loads(data))).encode()
    elif data:
        data = bytes(draw.choice([flip, cut, number])(draw, bytearray(data)))
    records[chosen] = (entry, data)
    root = records[0][0].filename.partition("/")[0]
    if draw.random() < 0.3:
        extra = zipfile.ZipInfo(
            draw.choice(["../neighbour/precious.json", f"{root}/data/7", f"/{CANARY}", f"{root}/x.so"])
        )
        extra.external_attr = draw.choice([0, (stat.S_IFLNK | 0o777) << 16])
        records.append((extra, draw.choice([b"/etc/passwd", b"evil"])))
    packed = draw.random() < 0.1
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED) as archive:
        for entry, data in records:
            archive.writestr(entry.filename if packed else entry, bytes(2**26) if packed and data else data)


CHANGES: dict[str, Change] = {
    **{change.__name__: _bytes(change) for change in (flip, cut, blank, move, repeat, number)},
    **{change.__name__: change for change in (lose, swap, link, pipe, waiting)},
    **{change.__name__: change for change in (json_edit, header_edit, record_edit)},
}
FITTING = {"checkpoint": ("json_edit", "header_edit", "waiting"), "saved": ("json_edit", "header_edit")}
RECORDS = {"pickled": ("record_edit",), "program": ("record_edit",), "binary": ("record_edit", "json_edit")}


def sign(folder: Path) -> None:
    """Write the checksums anew, as somebody who means harm would; in parts, those of the parts first."""
    for file in sorted(filter(Path.is_file, folder.rglob(MAIN)), key=lambda file: -len(file.parts)):
        try:
            main = json.loads(file.read_text())
            key = "files" if "files" in main else "sha256"
            told = {name: describe(file.parent, [name])[name] for name in main[key] if (file.parent / name).is_file()}
            main[key] |= told if key == "files" else {name: facts["sha256"] for name, facts in told.items()}
        except (OSError, ValueError, TypeError, AttributeError, KeyError):
            continue
        file.write_text(json.dumps(main))


# -- one case -----------------------------------------------------------------------------------------------------


def state_of(folder: Path) -> dict[str, str]:
    """Every path below a folder with what it holds."""
    found = {}
    for path in sorted(folder.rglob("*")):
        mode = path.lstat().st_mode
        told = os.readlink(path) if stat.S_ISLNK(mode) else ""
        told = hashlib.sha256(path.read_bytes()).hexdigest() if stat.S_ISREG(mode) else told
        found[str(path.relative_to(folder))] = f"{stat.S_IFMT(mode):o} {told}"
    return found


class Watch:
    """What the process does that reading a file must not do."""

    def __init__(self) -> None:
        self.on, self.seen = False, list[str]()
        sys.addaudithook(self._hear)

    def _hear(self, event: str, args: Any) -> None:
        if self.on and event in ACTS:
            self.seen.append(f"{event} {args!r:.200}")


@contextmanager
def limited() -> Iterator[None]:
    def ring(*_: Any) -> None:
        raise Slow

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def judge(case: int, material: Path, place: Path, watch: Watch) -> Outcome:
    """Damage a copy of some material as the number says, and read it.

    Args:
        case: the number.
        material: see `make_material`.
        place: a folder that is there and empty; what is in it afterwards is of no use.
        watch: on the process.
    """
    draw = random.Random(case)
    kinds = sorted(path.name for path in material.iterdir())
    kind = draw.choice(kinds)
    folder = place / kind
    shutil.copytree(material / kind, folder)
    shutil.copytree(material / draw.choice(kinds), place / "other")
    (place / "neighbour").mkdir()
    (place / "neighbour" / "precious.json").write_text('{"precious": 1}')
    own = (*FITTING.get(kind.partition("-")[0], ()), *RECORDS.get(kind, ()))
    change = draw.choice(own) if draw.random() < 0.6 else draw.choice(sorted(CHANGES))
    CHANGES[change](draw, folder)
    if draw.random() < 0.8:
        sign(folder)
    return _read(kind, change, folder, draw.random() < 0.5, watch)


def _read(kind: str, change: str, folder: Path, verify: bool, watch: Watch) -> Outcome:
    before, held, start = state_of(folder.parent), _held(), time.perf_counter()
    here = os.getcwd()
    os.chdir(folder.parent)
    watch.on, watch.seen = True, []
    status, note = "loaded", ""
    try:
        with limited():
            read(kind, folder, verify)
    except SortifyError as error:
        status, note = ("refused" if "\n" not in str(error) else "traceback"), str(error)
    except Slow:
        status = "slow"
    except BaseException as error:
        status, note = "traceback", f"{type(error).__name__}: {error}"
    finally:
        watch.on = False
        os.chdir(here)
    seconds, taken = time.perf_counter() - start, _most() - held
    if taken > BYTES:
        status = "memory"
    if state_of(folder.parent) != before:
        status = "changed"
    if watch.seen:
        status, note = "ran", watch.seen[0]
    return Outcome(kind, change, status, note[:300].replace(str(folder.parent), ""), seconds, taken / 1e6)


def _held() -> int:
    """What the process holds; from here on `_most` begins anew."""
    Path("/proc/self/clear_refs").write_text("5")
    return _of_status("VmRSS")


def _most() -> int:
    """The most that the process has held since `_held`."""
    return _of_status("VmHWM")


def _of_status(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024
