"""The published sizes of the diffusion transformer."""

# width, depth, heads: DiT (Peebles & Xie, arXiv 2212.09748, table 1), and the two larger ones of SFD (arXiv 2512.04926)
SIZES = {
    "S": (384, 12, 6), "B": (768, 12, 12), "L": (1024, 24, 16), "XL": (1152, 28, 16),
    "1p0B": (1536, 24, 24), "1p6B": (1792, 28, 28),
}  # fmt: skip


def parse_size(size: str, **parts: int | None) -> tuple[int, int, int, int]:
    """Return width, depth, number of heads and patch size of a size such as 'B/2', where `parts` override them."""
    letter, _, patch = size.partition("/")
    if letter not in SIZES or not patch.isdigit() or int(patch) < 1:
        allowed = f"one of {', '.join(SIZES)}, a slash and a patch size, such as 'B/2'"
        raise ValueError(f"DiffusionTransformer.size = {size!r}: must be {allowed}")
    for name, value in parts.items():
        if value is not None and value < 1:
            raise ValueError(f"DiffusionTransformer.{name} = {value}: must be at least 1")
    sizes = zip(("width", "depth", "num_heads", "patch_size"), (*SIZES[letter], int(patch)), strict=True)
    width, depth, num_heads, patch_size = (parts.get(name) or value for name, value in sizes)
    return width, depth, num_heads, patch_size
