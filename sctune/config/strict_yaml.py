"""YAML as people write it, read safely: no tags that make objects, no key twice, no file that unfolds to gigabytes."""

from __future__ import annotations

from typing import Any

import yaml

MAX_NODES = 20_000
"""Values and keys of a document, with what its aliases repeat; a few lines can otherwise stand for billions."""


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and (key.tag, key.value) in seen:
                # the later one would silently win
                where = key.start_mark
                raise yaml.constructor.ConstructorError(None, None, f"the key {key.value!r} is there twice", where)
            seen.add((key.tag, key.value) if isinstance(key, yaml.ScalarNode) else None)
        return super().construct_mapping(node, deep)


def parse_yaml(text: str) -> Any:
    """The content of one document; raises yaml.YAMLError, and nothing else, for one that cannot be read."""
    loader = _Loader(text)
    try:
        root = loader.get_single_node()
        if root is None:
            return None
        if _expanded(root, {}) > MAX_NODES:
            raise yaml.YAMLError(f"more than {MAX_NODES} values; a long list can be a range (low, high)")
        return loader.construct_document(root)
    except RecursionError:
        raise yaml.YAMLError("nested too deeply") from None
    except (ValueError, OverflowError) as problem:
        # the 99th of a month, an integer of thousands of digits
        raise yaml.YAMLError(str(problem)) from None
    finally:
        loader.dispose()


def _expanded(node: yaml.Node, known: dict[int, int | None]) -> int:
    """Nodes below, those behind aliases counted each time; `known` holds each node's own, None while it is counted."""
    if id(node) in known:
        size = known[id(node)]
        if size is None:
            raise yaml.YAMLError("an alias stands for something that holds it")
        return size
    known[id(node)] = None
    size = 1
    if isinstance(node, yaml.MappingNode):
        size += sum(_expanded(key, known) + _expanded(value, known) for key, value in node.value)
    elif isinstance(node, yaml.SequenceNode):
        size += sum(_expanded(value, known) for value in node.value)
    known[id(node)] = size
    return size
