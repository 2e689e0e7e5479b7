"""What `train` refuses before the first step."""

from redi.data.cache.cache import EncodedRows
from redi.models.codec import JointCodec


def check_settings(
    *, num_steps, batch_size, accumulate, log_every, checkpoint_every, keep_checkpoints, preview_every, preview_images,
    monitor_every,
) -> None:  # fmt: skip
    """Raises ValueError unless all are whole numbers of at least 1 and `accumulate` divides `batch_size`."""
    for name, value in locals().items():
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"train.{name} = {value!r}: a whole number of at least 1 is needed")
    if batch_size % accumulate:
        raise ValueError(f"train.accumulate = {accumulate} does not divide train.batch_size = {batch_size}")


def check_data(codec: JointCodec, dataset) -> None:
    """Raises ValueError for a codec that is not fitted, or a cache of another one."""
    if not codec.fitted:
        raise ValueError("the codec is not fitted: call prepare(codec=..., dataset=...) and train on what it returns")
    if isinstance(dataset, EncodedRows):
        dataset.check(codec)
