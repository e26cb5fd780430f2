"""The manifests as kustomize would put them together, for what our kustomization uses of it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parents[3] / "deploy" / "kubernetes"
WITH_TLS = FOLDER.with_name("kubernetes-tls")
KNOWN = {
    "apiVersion",
    "kind",
    "namespace",
    "resources",
    "images",
    "configMapGenerator",
    "secretGenerator",
    "patches",
}
MERGED_BY = {"containers": "name", "env": "name", "volumes": "name", "volumeMounts": "mountPath"}
"""Lists that a patch adds to, and what tells their entries apart; others it replaces."""
HASH_CHARS = 10

Object = dict[str, Any]


def render(given: Mapping[str, str], folder: Path = FOLDER) -> list[Object]:
    """Every object. `given` are the files that whoever deploys has to make, by name."""
    made = _collect(folder, given)
    names: dict[tuple[str, str], str] = {}
    for (kind, name), data in made.generated.items():
        object_ = _generate(kind, name, data)
        names[kind, name] = object_["metadata"]["name"]
        made.objects.append(object_)
    for each in made.objects:
        if each["kind"] != "Namespace":
            each["metadata"]["namespace"] = made.namespace
        _rewrite(each, names, made.images)
    return made.objects


@dataclass
class _Made:
    """What a kustomization comes to, before names get their hashes."""

    namespace: str = ""
    objects: list[Object] = field(default_factory=list)
    generated: dict[tuple[str, str], dict[str, str]] = field(default_factory=dict)
    images: dict[str, str] = field(default_factory=dict)


def _collect(folder: Path, given: Mapping[str, str]) -> _Made:
    told: dict[str, Any] = yaml.safe_load((folder / "kustomization.yaml").read_text())
    assert set(told) <= KNOWN, "teach this module what else kustomize does"
    made = _Made()
    for name in told["resources"]:
        if (folder / name).is_dir():
            made = _collect((folder / name).resolve(), given)
        else:
            made.objects += _objects(folder / name)
    made.namespace = told["namespace"]
    for image in told.get("images", ()):
        made.images[image["name"]] = f"{image['newName']}:{image['newTag']}"
    for kind in ("ConfigMap", "Secret"):
        for generator in told.get(f"{kind[0].lower()}{kind[1:]}Generator", ()):
            merges = generator.get("behavior") == "merge"
            assert merges == ((kind, generator["name"]) in made.generated), generator
            data = made.generated.setdefault((kind, generator["name"]), {})
            data |= _data(folder, generator, given)
    for patch in told.get("patches", ()):
        for changed in _objects(folder / patch["path"]):
            [patched] = [each for each in made.objects if _same(each, changed)]
            _merge(patched, changed)
    return made


def _same(one: Object, other: Object) -> bool:
    return (one["kind"], one["metadata"]["name"]) == (other["kind"], other["metadata"]["name"])


def _merge(into: Object, patch: Object) -> None:
    """A strategic merge, as far as ours go."""
    for key, value in patch.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        elif key in MERGED_BY and key in into:
            by = MERGED_BY[key]
            there = {entry[by]: entry for entry in into[key]}
            for entry in value:
                if entry[by] in there:
                    _merge(there[entry[by]], entry)
                else:
                    into[key].append(entry)
        else:
            into[key] = value


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


def _data(folder: Path, generator: Object, given: Mapping[str, str]) -> dict[str, str]:
    data: dict[str, str] = {}
    for name in generator.get("files", []):
        data[Path(name).name] = given[name] if name in given else (folder / name).read_text()
    for name in generator.get("envs", []):
        data |= dict(line.split("=", 1) for line in given[name].splitlines())
    return data


def _generate(kind: str, name: str, data: dict[str, str]) -> Object:
    digest = hashlib.sha256(repr(sorted(data.items())).encode()).hexdigest()[:HASH_CHARS]
    where = "stringData" if kind == "Secret" else "data"
    return {"apiVersion": "v1", "kind": kind, "metadata": {"name": f"{name}-{digest}"}, where: data}


def _rewrite(each: Object, names: Mapping[tuple[str, str], str], images: Mapping[str, str]) -> None:
    for path, node in walk(each):
        if not path or not isinstance(node, dict):
            continue
        kind = "ConfigMap" if path[-1].startswith("configMap") else "Secret"
        for key in ("name", "secretName"):
            if path[-1].startswith(("configMap", "secret")) and key in node:
                node[key] = names.get((kind, node[key]), node[key])
        if "image" in node:
            node["image"] = images.get(node["image"], node["image"])
