"""The connections over which files are fetched."""

import httpx

from nanoray import __version__
from nanoray.config import InputError
from nanoray.storage_errors import describe


def open_client(seconds: float) -> httpx.Client:
    """Open a pool of connections, through what the environment names as a proxy.

    Raises:
        InputError: that cannot be used.
    """
    # A compressed answer would have other offsets and another length than the file.
    headers = {"Accept-Encoding": "identity", "User-Agent": f"nanoray/{__version__}"}
    try:
        return httpx.Client(follow_redirects=True, timeout=seconds, headers=headers)
    except (ImportError, ValueError, OSError, httpx.InvalidURL) as error:
        raise InputError(
            f"The environment's proxy or certificates cannot be used ({describe(error)}). Mend "
            "HTTPS_PROXY, ALL_PROXY, NO_PROXY or SSL_CERT_FILE; a socks5 proxy needs "
            "pip install 'httpx[socks]'."
        ) from error
