"""The manifests as kustomize would put them together, for what our kustomization uses of it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parents[3] / "deploy" / "kubernetes"
KNOWN = {
    "apiVersion",
    "kind",
    "namespace",
    "resources",
    "images",
    "configMapGenerator",
    "secretGenerator",
}
HASH_CHARS = 10

Object = dict[str, Any]


def render(given: Mapping[str, str]) -> list[Object]:
    """Every object. `given` are the files that whoever deploys has to make, by name."""
    made: dict[str, Any] = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
    assert set(made) <= KNOWN, "teach this module what else kustomize does"
    objects = [each for name in made["resources"] for each in _objects(FOLDER / name)]
    names: dict[tuple[str, str], str] = {}
    for kind, generators in (
        ("ConfigMap", made["configMapGenerator"]),
        ("Secret", made["secretGenerator"]),
    ):
        for generator in generators:
            generated = _generate(kind, generator, given)
            names[kind, generator["name"]] = generated["metadata"]["name"]
            objects.append(generated)
    images = {each["name"]: f"{each['newName']}:{each['newTag']}" for each in made["images"]}
    for each in objects:
        if each["kind"] != "Namespace":
            each["metadata"]["namespace"] = made["namespace"]
        _rewrite(each, names, images)
    return objects


def walk(node: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Each value below, with its path."""
    yield path, node
    if isinstance(node, dict):
        for key, value in node.items():
            yield from walk(value, (*path, str(key)))
    elif isinstance(node, list):
        for value in node:
            yield from walk(value, path)


def references(each: Object) -> Iterator[tuple[str, str, str | None]]:
    """ConfigMaps and Secrets that an object needs: kind, name, and the key if one is named."""
    for path, node in walk(each):
        if not path or not isinstance(node, dict):
            continue
        match path[-1]:
            case "configMapRef" | "secretRef":
                yield _kind(path[-1]), node["name"], None
            case "configMapKeyRef" | "secretKeyRef":
                yield _kind(path[-1]), node["name"], node["key"]
            case "configMap":
                yield "ConfigMap", node["name"], None
            case "secret":
                for item in node.get("items", [{}]):
                    yield "Secret", node["secretName"], item.get("key")


def _kind(reference: str) -> str:
    return "Secret" if reference.startswith("secret") else "ConfigMap"


def _objects(path: Path) -> list[Object]:
    return [each for each in yaml.safe_load_all(path.read_text()) if each]


def _generate(kind: str, generator: Object, given: Mapping[str, str]) -> Object:
    data: dict[str, str] = {}
    for name in generator.get("files", []):
        data[name] = given[name] if name in given else (FOLDER / name).read_text()
    for name in generator.get("envs", []):
        data |= dict(line.split("=", 1) for line in given[name].splitlines())
    digest = hashlib.sha256(repr(sorted(data.items())).encode()).hexdigest()[:HASH_CHARS]
    field = "stringData" if kind == "Secret" else "data"
    name = f"{generator['name']}-{digest}"
    return {"apiVersion": "v1", "kind": kind, "metadata": {"name": name}, field: data}


def _rewrite(each: Object, names: Mapping[tuple[str, str], str], images: Mapping[str, str]) -> None:
    for path, node in walk(each):
        if not path or not isinstance(node, dict):
            continue
        kind = "ConfigMap" if path[-1].startswith("configMap") else "Secret"
        for field in ("name", "secretName"):
            if path[-1].startswith(("configMap", "secret")) and field in node:
                node[field] = names.get((kind, node[field]), node[field])
        if "image" in node:
            node["image"] = images.get(node["image"], node["image"])
