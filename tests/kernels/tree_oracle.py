"""Draft trees in plain Python, from the definition: parents, then ancestors. Judge of the kernels.

Nothing here knows how either implementation works; there are no tensors but at the very end.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

NONE = -1


@dataclass(frozen=True)
class Tree:
    """One request's tree: ``parents[i]`` is the parent of node ``i``; the root's is ``None``.

    An orphan, whose parent was not chosen, has ``NONE``.
    """

    parents: tuple[int | None, ...]

    @property
    def num_nodes(self) -> int:
        return len(self.parents)

    def ancestors(self, node: int) -> list[int]:
        """Return the node itself, its parent, and so on up to the root."""
        chain = [node]
        while chain[-1] != 0:
            parent = self.parents[chain[-1]]
            chain.append(0 if parent in (None, NONE) else parent)
        return chain

    def children(self, node: int) -> list[int]:
        return [child for child, parent in enumerate(self.parents) if parent == node]

    def mask(self) -> list[list[bool]]:
        lineages = [self.ancestors(node) for node in range(self.num_nodes)]
        return [[other in lineage for other in range(self.num_nodes)] for lineage in lineages]

    def depths(self) -> list[int]:
        return [len(self.ancestors(node)) - 1 for node in range(self.num_nodes)]

    def first_children(self) -> list[int]:
        return [(self.children(node) or [NONE])[0] for node in range(self.num_nodes)]

    def next_siblings(self) -> list[int]:
        siblings = [NONE] * self.num_nodes
        for node in range(self.num_nodes):
            family = self.children(node)
            for elder, younger in itertools.pairwise(family):
                siblings[elder] = younger
        return siblings

    def walk(self, candidates: list[int], targets: list[int], slots: int) -> list[int]:
        """Return the visited nodes, root first: at most ``slots`` of them."""
        visited = [0]
        while len(visited) < slots:
            wanted = targets[visited[-1]]
            fitting = [c for c in self.children(visited[-1]) if candidates[c] == wanted]
            if not fitting:
                break
            visited.append(fitting[0])
        return visited


def tree_of_entries(chosen: list[int], parent_list: list[int], topk: int) -> Tree:
    """Read SGLang's encoding: chosen entries (ascending) and the entry each parent slot holds."""
    node_of = {entry: node for node, entry in enumerate(chosen, start=1)}
    parents: list[int | None] = [None]
    for entry in chosen:
        slot = entry // topk
        parents.append(0 if slot == 0 else node_of.get(parent_list[slot], NONE))
    return Tree(tuple(parents))
