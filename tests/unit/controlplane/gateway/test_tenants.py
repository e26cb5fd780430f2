"""Keys: whose they are, what is kept of them, and files that cannot be used."""

from __future__ import annotations

from pathlib import Path

import pytest

from controlplane.gateway.openai import ClientError
from controlplane.gateway.tenants import BadTenants, key_hash, new_key, read_tenants


def written(folder: Path, text: str) -> Path:
    path = folder / "tenants.toml"
    path.write_text(text)
    return path


def test_a_key_is_its_tenants_and_only_its_hash_is_kept(tmp_path: Path) -> None:
    key, other = new_key(), new_key()
    path = written(
        tmp_path,
        f'[tenants.acme]\nkeys = ["{key_hash(key)}"]\nslo_class = "interactive"\n'
        f'[tenants.zoo]\nkeys = ["{key_hash(other)}"]\n',
    )
    tenants = read_tenants(path)
    assert tenants.of(f"Bearer {key}").name == "acme"
    assert tenants.of(f"bearer  {other} ").name == "zoo"
    assert tenants.of(f"Bearer {key}").slo_class == "interactive"
    assert key not in path.read_text() and key != other


@pytest.mark.parametrize("header", ["", "Bearer ", "Bearer wrong", "Basic abc", "Bearer \u00e9"])
def test_who_has_no_key_is_told_so_and_nothing_else(tmp_path: Path, header: str) -> None:
    tenants = read_tenants(written(tmp_path, f'[tenants.a]\nkeys = ["{key_hash("k")}"]\n'))
    with pytest.raises(ClientError) as refused:
        tenants.of(header)
    assert (refused.value.status, refused.value.code) == (401, "invalid_api_key")
    assert "wrong" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no \\[tenants.NAME\\]"),
        ("[tenants.a]\n", "nobody could ask"),
        ('[tenants.a]\nkeys = ["plain"]\n', "tenants.a: keys.0"),
        ("[tenants.a]\ntokens_per_minute = 0\n", "tokens_per_minute"),
        ("[tenants.a]\nspeling = 1\n", "speling"),
        ('["tenants"."a b"]\n', "tenant 'a b'"),
        ("[tenants\n", "cannot be read"),
        ("tenants = 3\n", "no \\[tenants.NAME\\]"),
        (
            f'[tenants.a]\nkeys = ["{key_hash("k")}"]\n[tenants.b]\nkeys = ["{key_hash("k")}"]\n',
            "same",
        ),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_with_the_place(
    tmp_path: Path, text: str, says: str
) -> None:
    with pytest.raises(BadTenants, match=says):
        read_tenants(written(tmp_path, text))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadTenants, match=r"nowhere\.toml"):
        read_tenants(tmp_path / "nowhere.toml")
