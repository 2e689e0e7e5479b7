"""Where tensors live and in which precision networks run."""

import torch


def choose_device(device: str) -> torch.device:
    """'auto' is the GPU where there is one, else the CPU. Raises ValueError for what torch does not have here."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError, TypeError) as error:
        what = str(error).strip().splitlines()[0]
        raise ValueError(f"train.device = {device!r} cannot be used here: {what}. 'auto' takes what there is") from None
    return chosen


def choose_precision(precision: str, device: torch.device, binding: str = "train.precision") -> torch.dtype:
    """The dtype for autocast, float32 meaning none. 'auto' is bfloat16 on a GPU that has it, else float32."""
    if precision not in ("auto", "float32", "bfloat16"):
        raise ValueError(f"{binding} = {precision!r}: it is 'auto', 'float32' or 'bfloat16'")
    if precision == "auto":
        has_it = device.type == "cuda" and torch.cuda.is_bf16_supported()
        return torch.bfloat16 if has_it else torch.float32
    return getattr(torch, precision)
