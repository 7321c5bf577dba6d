"""Settings of the API."""

import hashlib
import pickle

from nanoray.serve.settings import ApiSettings, hash_keys


def test_keys_are_kept_as_hashes_only() -> None:
    settings = ApiSettings(key_hashes=hash_keys(["secret-key"]))

    assert settings.key_hashes == (hashlib.sha256(b"secret-key").hexdigest(),)
    assert "secret-key" not in repr(settings)
    assert b"secret-key" not in pickle.dumps(settings)
