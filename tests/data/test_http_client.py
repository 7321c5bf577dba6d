import pytest

from nanoray.config import InputError
from nanoray.data.http_client import open_client


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ALL_PROXY", "socks5h://127.0.0.1:1080"),
        ("HTTPS_PROXY", "ftp://127.0.0.1:21"),
        ("NO_PROXY", "localhost,fe80::/10"),
        ("SSL_CERT_FILE", "/nowhere/certificates.pem"),
    ],
)
def test_a_proxy_that_cannot_be_used_is_told_in_a_sentence(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)

    with pytest.raises(
        InputError, match=r"^The environment's proxy or certificates cannot .* Mend"
    ):
        open_client(1.0)


def test_the_password_of_a_proxy_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "ftp://someone:plum-tart@127.0.0.1:21")

    with pytest.raises(InputError) as error:
        open_client(1.0)

    assert "plum-tart" not in str(error.value)


def test_a_proxy_that_can_be_used_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:3128")

    open_client(1.0).close()
