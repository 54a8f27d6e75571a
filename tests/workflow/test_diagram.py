"""Diagrams: well formed for every workflow, and plain to see for one."""

from __future__ import annotations

import re

from hypothesis import given

from kitchen.workflow import ir
from kitchen.workflow.diagram import to_mermaid, to_tree
from kitchen.workflow.ir import CodeRef, ConditionalNode, LoopNode, StageNode, WorkflowIR
from tests.strategies import workflow_irs
from tests.workflow import samples

NODE = re.compile(
    r'^ +(n\d+)(?:\(\["[^"]*"\]\)|\["[^"]*"\]|\[/"[^"]*"/\]|\[\("[^"]*"\)\]|\{"[^"]*"\}'
    r'|\{\{"[^"]*"\}\})$'
)
FRAME = re.compile(r'^ +subgraph (n\d+)\["[^"]*"\]$')
EDGE = re.compile(r'^    (n\d+) -->(?:\|"(item|done|yes|no)"\|)? (n\d+)$')

MERMAID = """\
flowchart TD
    n1(["conditional_steps"])
    n2[/"session"/]
    subgraph n3["loop steps"]
        n4{{"next of steps_range"}}
        n5["train_step"]
        n6{"should_eval?"}
        n7["eval"]
        n8["note"]
        n9{"should_checkpoint?"}
        n10[("checkpoint")]
        n11{"conditional?"}
        n12["tail"]
    end
    n13(["end"])
    n1 --> n2
    n2 --> n4
    n4 -->|"item"| n5
    n5 --> n6
    n6 -->|"yes"| n7
    n6 -->|"no"| n8
    n7 --> n9
    n8 --> n9
    n9 -->|"yes"| n10
    n10 --> n11
    n9 -->|"no"| n11
    n11 -->|"yes"| n12
    n12 --> n4
    n11 -->|"no"| n4
    n4 -->|"done"| n13
"""
TREE = """\
conditional_steps
├── resource session
└── loop steps over steps_range
    ├── stage train_step
    ├── conditional should_eval
    │   ├── stage eval
    │   └── otherwise
    │       └── stage note
    ├── conditional should_checkpoint
    │   └── checkpoint checkpoint
    └── conditional conditional
        └── stage tail
"""


def test_a_picture_of_a_loop_with_questions() -> None:
    assert to_mermaid(samples.conditional_steps.ir) == MERMAID


def test_a_tree_of_a_loop_with_questions() -> None:
    assert to_tree(samples.conditional_steps.ir) == TREE


def test_labels_are_escaped() -> None:
    code = CodeRef("m", "f.<locals>.<lambda>")
    odd = WorkflowIR(
        name='a"];b#',
        body=(LoopNode('`x`\n"', code, (StageNode("<b>", code),)),),
    )
    drawn = to_mermaid(odd)
    assert '(["a#34;#93;#59;b#35;"])' in drawn
    assert 'subgraph n2["loop #96;x#96; #34;"]' in drawn
    assert '["#60;b#62;"]' in drawn
    assert '{{"next of items"}}' in drawn


@given(workflow_irs())
def test_every_flowchart_is_well_formed(drawn: ir.WorkflowIR) -> None:
    first, *lines = to_mermaid(drawn).splitlines()
    assert first == "flowchart TD"
    nodes: set[str] = set()
    frames: list[str] = []
    edges: list[tuple[str, str, str]] = []
    for line in lines:
        if found := NODE.match(line):
            assert found[1] not in nodes
            nodes.add(found[1])
        elif found := FRAME.match(line):
            frames.append(found[1])
            assert found[1] not in nodes
        elif line.strip() == "end":
            frames.pop()
        else:
            found = EDGE.match(line)
            assert found, line
            edges.append((found[1], found[2] or "", found[3]))
    assert frames == []
    assert {end for source, _, target in edges for end in (source, target)} == nodes

    walked = [node for _, node in ir.walk(drawn)]
    loops = sum(isinstance(node, LoopNode) for node in walked)
    questions = sum(isinstance(node, ConditionalNode) for node in walked)
    assert len(nodes) == len(walked) + 2
    assert [says for _, says, _ in edges].count("item") == loops
    assert [says for _, says, _ in edges].count("yes") == questions
    # Everything can be reached from the start.
    reached = {"n1"}
    while more := {target for source, _, target in edges if source in reached} - reached:
        reached |= more
    assert reached == nodes


@given(workflow_irs())
def test_every_tree_names_every_node_once(drawn: ir.WorkflowIR) -> None:
    lines = to_tree(drawn).splitlines()
    walked = [node for _, node in ir.walk(drawn)]
    arms = sum(isinstance(node, ConditionalNode) and bool(node.otherwise) for node in walked)
    assert lines[0] == drawn.name
    assert len(lines) == 1 + len(walked) + arms
