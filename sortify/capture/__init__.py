"""torch.export, for both modes and with open sizes, made plain."""
