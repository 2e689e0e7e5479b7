"""Find or download files of the Hugging Face hub; fail fast if they are missing."""

import os
from collections.abc import Sequence
from pathlib import Path


def find_hub_file(repo_id: str, filename: str, *, binding: str, folder: Sequence[str] = ()) -> Path:
    """The local path of a file of a hub repository: from the hub cache, else downloaded into it.

    The server is asked once: the hub client alone would retry for about a minute without a network.

    Args:
        repo_id: as 'timm/vit_base_patch14_reg4_dinov2.lvd142m'.
        binding: what a user may set instead, as 'StableVAE.weights'.
        folder: where `binding` takes a folder: all files that must lie in it. Default: it takes the path of the file.

    Raises ValueError: not in the cache, and offline, unreachable, refused, or not in the repository.
    """
    if (cached := cached_hub_file(repo_id, filename, binding=binding)) is not None:
        return cached

    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, RepositoryNotFoundError

    page = f"https://huggingface.co/{repo_id}"
    missing = f"{filename} of {repo_id} is not in the local hub cache ({constants.HF_HUB_CACHE})"
    advice = f"Download {filename} from {page}, and set {binding} = 'the path of that file'"
    if folder:
        missing = f"{binding}: there is no folder {repo_id!r} here, and {missing}"
        advice = f"Download {' and '.join(folder)} from {page} into a folder, and set {binding} = 'that folder'"
    if constants.HF_HUB_OFFLINE or os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise ValueError(f"{missing}, and HF_HUB_OFFLINE is set. {advice}")
    try:
        get_hf_file_metadata(hf_hub_url(repo_id, filename), timeout=5)
    except GatedRepoError:
        cause = "its licence has to be accepted on its page first; then log in with `hf auth login`"
        raise ValueError(f"{missing}, and {cause}. {advice}") from None
    except EntryNotFoundError:
        raise ValueError(f"{binding}: {repo_id} on the hub has no {filename}: another kind of model?") from None
    except RepositoryNotFoundError:
        raise ValueError(f"{binding}: there is no public model {repo_id} on the hub. {advice}") from None
    except Exception as error:  # whatever the HTTP library of the installed hub client raises
        cause = f"{constants.ENDPOINT} does not answer ({type(error).__name__}: {error})"
        raise ValueError(f"{missing}, and {cause}. {advice}") from None
    return Path(hf_hub_download(repo_id, filename))


def cached_hub_file(repo_id: str, filename: str, *, binding: str) -> Path | None:
    """The file in the local hub cache, or None. Never asks the network. Raises ValueError: no possible repo_id."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(repo_id)
    except HFValidationError:
        raise ValueError(f"{binding} = {repo_id!r}: there is no such file or folder, nor can a hub id be so") from None
    path = try_to_load_from_cache(repo_id, filename)
    return Path(path) if isinstance(path, str) else None
