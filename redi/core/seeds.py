"""Seeds made of several numbers."""


def mix_seeds(*seeds: int) -> int:
    """One 63-bit seed from several integers, so that (0, 1) and (1, 0) have nothing in common."""
    mixed = 0
    for seed in seeds:
        # splitmix64 (Steele, Lea & Flood 2014): a bijection whose output bits each depend on all input bits.
        mixed = (mixed + seed + 0x9E3779B97F4A7C15) % 2**64
        mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB % 2**64
        mixed ^= mixed >> 31
    return mixed >> 1
