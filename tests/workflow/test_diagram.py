"""Diagrams: well formed for every workflow, and plain to see for one."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from hypothesis import given

from kitchen.workflow import ir
from kitchen.workflow.diagram import to_mermaid, to_tree
from kitchen.workflow.ir import (
    AsyncLoopNode,
    BranchNode,
    CodeRef,
    ConditionalNode,
    HandlerNode,
    IncludeNode,
    LoopNode,
    ParallelNode,
    ParallelOverNode,
    Reducer,
    Retries,
    StageNode,
    StreamLoopNode,
    TimeoutNode,
    WorkflowIR,
)
from tests.strategies import workflow_irs
from tests.workflow import samples

LABEL = r'"[^"]*"'
NODE = re.compile(
    rf"^ +(n\d+)(?:\(\[{LABEL}\]\)|\[{LABEL}\]|\[/{LABEL}/\]|\[\({LABEL}\)\]|\{{{LABEL}\}}"
    rf"|\{{\{{{LABEL}\}}\}}|\[\[{LABEL}\]\]|\[/{LABEL}\\\]|\[\\{LABEL}/\])$"
)
FRAME = re.compile(rf"^ +subgraph (n\d+)\[{LABEL}\]$")
EDGE = re.compile(r'^    (n\d+) -->(?:\|"(item|done|yes|no)"\|)? (n\d+)$')
FAILS = re.compile(r'^    (n\d+) -\.->\|"on error"\| (n\d+)$')
DOTTED = re.compile(r'^    (n\d+) -\.->\|"(buffer \d+[a-z0-9, ]*)"\| (n\d+)$')

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


# How many nodes a construct has of its own, where it is not one.
NODES: dict[Any, int] = {
    AsyncLoopNode: 3,
    ParallelNode: 2,
    ParallelOverNode: 2,
    BranchNode: 0,
    IncludeNode: 0,
    TimeoutNode: 0,
    HandlerNode: 0,
}
FRAMED = (LoopNode, StreamLoopNode, *NODES)
FULL = r"""flowchart TD
    n1(["full_training"])
    n2["load_dataset"]
    n3[/"session"/]
    subgraph n4["loop epochs"]
        n5{{"next of epochs_range"}}
        subgraph n6["stream_loop batches, prefetch 4"]
            n7{{"next of stream_batches"}}
            n8["forward_backward"]
            n9["optim_step"]
        end
        n10{"should_eval?"}
        subgraph n11["parallel, at most 2"]
            n12[/"all of"\]
            n13["eval_train"]
            subgraph n14["branch eval_val"]
                n15["prepare"]
                n16["score"]
            end
            subgraph n17["include eval_all, the workflow evaluation"]
                n18[/"model"/]
                subgraph n19["parallel evals, for each of splits, at most as workers says, all finish"]
                    n20[/"each of splits"\]
                    n21["eval"]
                    n22[\"join, global_step by max"/]
                end
            end
            n23[\"join, global_step by latest"/]
        end
        n24{"should_checkpoint?"}
        n25[("checkpoint")]
    end
    subgraph n26["async_loop off_policy"]
        n27[["collect_rollouts #40;2 at a time#41;"]]
        n28{{"next of collect_rollouts"}}
        n29["train_batch"]
        n30{"done_training?"}
    end
    n31["cleanup"]
    n32(["end"])
    n1 --> n2
    n2 --> n3
    n3 --> n5
    n5 -->|"item"| n7
    n7 -->|"item"| n8
    n8 --> n9
    n9 --> n7
    n7 -->|"done"| n10
    n10 -->|"yes"| n12
    n12 --> n13
    n12 --> n15
    n15 --> n16
    n12 --> n18
    n18 --> n20
    n20 --> n21
    n21 --> n22
    n13 --> n23
    n16 --> n23
    n22 --> n23
    n23 --> n24
    n10 -->|"no"| n24
    n24 -->|"yes"| n25
    n25 --> n5
    n24 -->|"no"| n5
    n27 -.->|"buffer 4, free, staleness at most 3"| n28
    n5 -->|"done"| n28
    n28 -->|"item"| n29
    n29 --> n30
    n30 -->|"no"| n28
    n30 -->|"yes"| n31
    n31 --> n32
"""
FULL_TREE = """\
full_training
├── stage load_dataset
├── resource session
├── loop epochs over epochs_range
│   ├── stream_loop batches over stream_batches, prefetch 4
│   │   ├── stage forward_backward
│   │   └── stage optim_step
│   ├── conditional should_eval
│   │   └── parallel, at most 2, merging global_step by latest
│   │       ├── stage eval_train
│   │       ├── branch eval_val
│   │       │   ├── stage prepare
│   │       │   └── stage score
│   │       └── include eval_all, the workflow evaluation
│   │           ├── resource model
│   │           └── parallel evals, for each of splits, at most as workers says, all finish, merging global_step by max
│   │               └── stage eval
│   └── conditional should_checkpoint
│       └── checkpoint checkpoint
├── async_loop off_policy from collect_rollouts (2 at a time) until done_training, buffer 4, free, staleness at most 3
│   └── stage train_batch
└── stage cleanup
"""


def test_a_picture_of_all_there_is() -> None:
    assert to_mermaid(samples.full_training.ir) == FULL


def test_a_tree_of_all_there_is() -> None:
    assert to_tree(samples.full_training.ir) == FULL_TREE


def test_captions_leave_out_what_has_no_name() -> None:
    code = CodeRef("m", "f.<locals>.<lambda>")
    body = (StageNode("s", code),)
    merge = {"loss": Reducer("<lambda>", code), "a\nb": Reducer("sum")}
    drawn = WorkflowIR(
        "w",
        (
            AsyncLoopNode("a", code, code, body),
            StreamLoopNode("b", code, body),
            ParallelNode("parallel", body, limit=code, merge=merge),
            ParallelOverNode("parallel", code, body),
            IncludeNode("w", "w", body),
        ),
    )
    assert to_tree(drawn).replace("stage s\n", "") == (
        "w\n"
        "├── async_loop a from producer until stopped, buffer 4\n│   └── "
        "├── stream_loop b over items, prefetch 2\n│   └── "
        "├── parallel, at most as a function says, merging loss by a function, 'a\\nb' by sum\n"
        "│   └── "
        "├── parallel parallel, for each of items\n│   └── "
        "└── include w\n    └── "
    )
    chart = to_mermaid(drawn)
    assert '[["producer"]]' in chart
    assert '{"stop_when?"}' in chart
    assert '[\\"join, loss by a function, #39;a#92;nb#39; by sum"/]' in chart


GUARDED = r"""flowchart TD
    n1(["guarded"])
    n2["tokenize, 600 s, process"]
    n3[/"session"/]
    subgraph n4["on_error no_session"]
        n5["note"]
    end
    subgraph n6["timeout, 3600 s"]
        subgraph n7["loop epochs"]
            n8{{"next of epochs_range"}}
            n9["train, 3 retries on ConnectionError or TimeoutError"]
            n10["evaluate, 1 retry, skip on error"]
        end
        n11[("checkpoint")]
    end
    n12{"should_eval?"}
    n13["push, once"]
    n14["keep"]
    subgraph n15["on_error not_pushed"]
        subgraph n16["timeout tidying, 30.5 s"]
            n17["tidy"]
        end
    end
    n18["publish"]
    n19(["end"])
    n1 --> n2
    n2 --> n3
    n3 -.->|"on error"| n5
    n3 --> n8
    n5 --> n8
    n8 -->|"item"| n9
    n9 --> n10
    n10 --> n8
    n8 -->|"done"| n11
    n11 --> n12
    n6 -.->|"on error"| n12
    n12 -->|"yes"| n13
    n12 -->|"no"| n14
    n12 -.->|"on error"| n17
    n13 --> n18
    n14 --> n18
    n17 --> n18
    n18 --> n19
"""
GUARDED_TREE = """\
guarded
├── stage tokenize, 600 s, process
├── resource session
├── on_error no_session
│   └── stage note
├── timeout, 3600 s
│   ├── loop epochs over epochs_range
│   │   ├── stage train, 3 retries on ConnectionError or TimeoutError
│   │   └── stage evaluate, 1 retry, skip on error
│   └── checkpoint checkpoint
├── on_error on_error
├── conditional should_eval
│   ├── stage push, once
│   └── otherwise
│       └── stage keep
├── on_error not_pushed
│   └── timeout tidying, 30.5 s
│       └── stage tidy
└── stage publish
"""


def test_a_picture_of_what_may_fail() -> None:
    assert to_mermaid(samples.guarded.ir) == GUARDED


def test_a_tree_of_what_may_fail() -> None:
    assert to_tree(samples.guarded.ir) == GUARDED_TREE


def test_a_caption_says_all_that_a_stage_says_of_failing() -> None:
    stage = StageNode(
        "push",
        CodeRef("m", "push"),
        retry=Retries(2),
        timeout=0.25,
        effect="once",
        process=True,
        on_error="skip",
    )
    told = "push, 2 retries, 0.25 s, once, process, skip on error"
    assert to_tree(WorkflowIR("w", (stage,))) == f"w\n└── stage {told}\n"
    assert f'["{told}"]' in to_mermaid(WorkflowIR("w", (stage,)))


EVERY = (
    workflow_irs()
    | workflow_irs(max_nodes=20, max_depth=5, concurrent=True)
    | workflow_irs(max_nodes=20, max_depth=5, concurrent=True, failures=True, processes=True)
)


@given(EVERY)
def test_every_flowchart_is_well_formed(drawn: ir.WorkflowIR) -> None:
    first, *lines = to_mermaid(drawn).splitlines()
    assert first == "flowchart TD"
    nodes: set[str] = set()
    frames: list[str] = []
    framed: set[str] = set()
    edges: list[tuple[str, str, str]] = []
    makers: set[str] = set()
    failing: list[tuple[str, str]] = []
    for line in lines:
        if found := NODE.match(line):
            assert found[1] not in nodes
            nodes.add(found[1])
        elif found := FRAME.match(line):
            frames.append(found[1])
            framed.add(found[1])
        elif line.strip() == "end":
            frames.pop()
        else:
            if found := FAILS.match(line):
                failing.append((found[1], found[2]))
                continue
            found = EDGE.match(line) or DOTTED.match(line)
            assert found, line
            edges.append((found[1], found[2] or "", found[3]))
            makers |= {found[1]} if DOTTED.match(line) else set()
    assert frames == []
    assert not framed & nodes
    assert {source for source, _ in failing} <= nodes | framed
    # Where a frame fails, it was entered: its first node stands for it.
    edges += [(entered(source, nodes - makers), "on error", target) for source, target in failing]
    assert {end for source, _, target in edges for end in (source, target)} == nodes

    kinds = Counter(type(node) for _, node in ir.walk(drawn))
    asked = kinds[AsyncLoopNode]
    empty = sum(isinstance(node, HandlerNode) and not node.body for _, node in ir.walk(drawn))
    assert len(framed) == sum(kinds[kind] for kind in FRAMED) - empty
    assert len(nodes) == 2 + sum(NODES.get(kind, 1) * n for kind, n in kinds.items())
    assert len(makers) == asked
    says = Counter(says for _, says, _ in edges)
    assert says["item"] == kinds[LoopNode] + kinds[StreamLoopNode] + asked
    assert says["yes"] == kinds[ConditionalNode] + asked
    assert says["on error"] == kinds[HandlerNode]
    # Everything can be reached from the start, but what makes items beside the rest.
    reached = {"n1"}
    while more := {target for source, _, target in edges if source in reached} - reached:
        reached |= more
    assert reached == nodes - makers
    # And from everywhere, the end, which is drawn last.
    back = {max(nodes, key=number)}
    while more := {source for source, _, target in edges if target in back} - back:
        back |= more
    assert back == nodes


def number(made: str) -> int:
    return int(made[1:])


def entered(source: str, nodes: set[str]) -> str:
    """A node itself; of a frame, the first node in it."""
    return min((each for each in nodes if number(each) >= number(source)), key=number)


@given(EVERY)
def test_every_tree_names_every_node_once(drawn: ir.WorkflowIR) -> None:
    lines = to_tree(drawn).splitlines()
    walked = [node for _, node in ir.walk(drawn)]
    arms = sum(isinstance(node, ConditionalNode) and bool(node.otherwise) for node in walked)
    assert lines[0] == drawn.name
    assert len(lines) == 1 + len(walked) + arms


@given(EVERY)
def test_the_same_ir_gives_the_same_text(drawn: ir.WorkflowIR) -> None:
    again = ir.from_json(ir.to_json(drawn))
    assert (to_mermaid(again), to_tree(again)) == (to_mermaid(drawn), to_tree(drawn))
