"""`python -m sortify_cli`, for launchers that start modules: `torchrun -m sortify_cli train`."""

from __future__ import annotations

from .main import main

if __name__ == "__main__":
    main()
