"""Where on this machine the project keeps what it has fetched and trained."""

import os
from pathlib import Path

import platformdirs


def data_root() -> Path:
    """The folder of prepared data: what ``ROBRET_DATA`` names, else a cache folder of the user.

    Always absolute, since messages name it: a relative path counts from the working folder of this process.

    Raises:
        RuntimeError: where it lies below the home folder, and this user has none.
    """
    try:
        root = Path(os.environ.get("ROBRET_DATA") or platformdirs.user_cache_dir("robret"))
        return root.expanduser().absolute()
    except RuntimeError as error:
        raise RuntimeError(f"where is the data? Set ROBRET_DATA to an absolute path ({error})") from error
