"""If, Loop, Scan, sequences and functions in an ONNX file: walked where it is known what they do."""

from __future__ import annotations

from pathlib import Path

import pytest

from graphs.errors import InputError
from graphs.onnx_import.control_flow import MOST_UNROLLED
from graphs.sources import load_graph
from tests.graphs.onnx_import.models import op, save, types

W = f"float[8, 8] w = {{{', '.join(['1'] * 64)}}}"

IF = (
    f"""g (float[N, 8] x) => (float[?, 8] y) <int64 zero = {{0}}, int64 four = {{4}}, {W}> {{
    s = Shape(x) d = Gather(s, zero) p = Less(d, four)
    y = If(p) <then_branch = t () => (float[?, 8] a) {{ a = MatMul(x, w) }},
               else_branch = e () => (float[?, 8] b) """
    + """{ c = MatMul(x, w) b = MatMul(c, w) }> }"""
)


@pytest.mark.parametrize(("rows", "products"), [(1, 1), (3, 1), (4, 2), (9, 2)])
def test_the_branch_that_is_taken(tmp_path: Path, rows: int, products: int) -> None:
    graph = load_graph(f"{save(tmp_path, IF)}:N={rows}")
    assert types(graph) == ["MatMul"] * products
    assert graph.total_flops == products * 2 * rows * 8 * 8
    assert graph.parameter_bytes == 4 * 64


def test_a_branch_that_depends_on_missing_sizes_or_on_data(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"dimension 'N' of input 'x' is not fixed"):
        load_graph(save(tmp_path, IF))
    text = IF.replace("[N, 8] x)", "[4, 8] x, int64 mode)").replace("Less(d, four)", "Less(mode, four)")
    source = save(tmp_path, text)
    with pytest.raises(InputError, match=r"operator If 'y' decides in the step.*:y\.then=1.*:mode=1$"):
        load_graph(source)
    assert types(load_graph(f"{source}:mode=1")) == ["MatMul"]
    assert types(load_graph(f"{source}:mode=7")) == ["MatMul"] * 2
    assert types(load_graph(f"{source}:y.then=1")) == ["MatMul"]
    assert types(load_graph(f"{source}:y.then=0")) == ["MatMul"] * 2


def loop(trips: str, inputs: str = "", condition: str = "true") -> str:
    return f"""g (float[4, 8] x{inputs}) => (float[4, 8] y, float[?, 4, 8] all)
        <{W}, bool true = {{1}}, int64 trips = {{{trips}}}> {{
        y, all = Loop(n, {condition}, x) <body = b (int64 i, bool c, float[4, 8] h) =>
            (bool d, float[4, 8] o, float[4, 8] r) {{ d = Identity(c) o = MatMul(h, w) r = Relu(o) }}> }}"""


@pytest.mark.parametrize("trips", [1, 2, 7, 30])
def test_a_loop_whose_turns_are_known_is_unrolled(tmp_path: Path, trips: int) -> None:
    graph = load_graph(save(tmp_path, loop(str(trips)).replace("Loop(n,", "Loop(trips,")))
    assert types(graph).count("MatMul") == types(graph).count("Relu") == trips
    assert graph.total_flops == trips * 2 * 4 * 8 * 8
    assert graph.parameter_bytes == 4 * 64
    assert graph.output_shapes[-1] == ((trips, 4, 8),)
    # Each turn reads what the last one made.
    pairs = zip(graph.edge_producer, graph.consumers, strict=True)
    edges = {(graph.op_names[producer], graph.op_names[reader]) for producer, reader in pairs}
    assert edges >= {(f"y/{i}/o", f"y/{i + 1}/o") for i in range(trips - 1)}


def test_a_long_loop_is_one_operator_that_costs_all_turns(tmp_path: Path) -> None:
    trips = MOST_UNROLLED
    short = load_graph(save(tmp_path, loop("100").replace("Loop(n,", "Loop(trips,")))
    graph = load_graph(save(tmp_path, loop(str(trips)).replace("Loop(n,", "Loop(trips,")))
    assert types(graph) == ["Loop"]
    assert graph.total_flops == trips * 2 * 4 * 8 * 8
    assert graph.output_shapes[op(graph, "y")] == ((4, 8), (trips, 4, 8))
    joined = 2 * 4 * 100 * 4 * 8  # the unrolled one writes and reads what its turns put out once more
    assert graph.bytes_accessed.sum() / trips == pytest.approx((short.bytes_accessed.sum() - joined) / 100)
    assert graph.parameter_bytes == 4 * 64


@pytest.mark.parametrize(("outer", "inner"), [(3, 4), (1000, 1000), (1500, 30), (2, 1000)])
def test_loops_in_loops(tmp_path: Path, outer: int, inner: int) -> None:
    text = f"""g (float[4, 8] x) => (float[4, 8] y)
        <{W}, bool true = {{1}}, int64 n = {{{outer}}}, int64 m = {{{inner}}}> {{
        y = Loop(n, true, x) <body = b (int64 i, bool c, float[4, 8] h) => (bool d, float[4, 8] o) {{
            d = Identity(c)
            o = Loop(m, true, h) <body = a (int64 j, bool e, float[4, 8] k) => (bool f, float[4, 8] p) {{
                f = Identity(e) p = MatMul(k, w) }}> }}> }}"""
    graph = load_graph(save(tmp_path, text))
    assert graph.total_flops == outer * inner * 2 * 4 * 8 * 8
    assert graph.num_ops <= MOST_UNROLLED + 2
    assert graph.parameter_bytes == 4 * 64


def test_a_loop_whose_turns_are_known_in_the_step_alone(tmp_path: Path) -> None:
    source = save(tmp_path, loop("1", ", int64 n"))
    with pytest.raises(InputError, match=r"operator Loop 'y' makes a number of turns.*:y\.trips=8.*:n=1$"):
        load_graph(source)
    assert types(load_graph(f"{source}:n=3")).count("MatMul") == 3
    assert types(load_graph(f"{source}:y.trips=5")).count("MatMul") == 5


def test_a_loop_that_ends_by_its_condition(tmp_path: Path) -> None:
    text = f"""g (float[N, 8] x) => (float[?, 8] y)
        <{W}, bool true = {{1}}, int64 zero = {{0}}, int64 one = {{1}}, int64 three = {{3}}> {{
        z, y = Loop(, true, zero, x) <body = b (int64 i, bool c, int64 k, float[?, 8] h) =>
            (bool d, int64 m, float[?, 8] o) {{ m = Add(k, one) d = Less(m, three) o = MatMul(h, w) }}> }}"""
    graph = load_graph(f"{save(tmp_path, text)}:N=2")
    assert types(graph) == ["MatMul"] * 3
    endless = text.replace("d = Less(m, three)", "d = Identity(c)")
    with pytest.raises(InputError, match="makes a number of turns that is known in the step alone"):
        load_graph(f"{save(tmp_path, endless)}:N=2")


SCAN = """g (float[T, 3, 8] x, float[3, 8] h0) => (float[3, 8] h, float[?, 3, 8] all) <%s> {
    h, all = Scan <num_scan_inputs = 1, body = b (float[3, 8] s, float[3, 8] now) =>
        (float[3, 8] o, float[3, 8] r) { m = MatMul(s, w) o = Add(m, now) r = Relu(o) }> (h0, x) }"""


@pytest.mark.parametrize("steps", [1, 5, 100, 5000])
def test_scans(tmp_path: Path, steps: int) -> None:
    graph = load_graph(f"{save(tmp_path, SCAN % W)}:T={steps}")
    assert graph.total_flops == steps * 2 * 3 * 8 * 8
    assert ("Scan" in types(graph)) == (steps * 3 > MOST_UNROLLED)
    assert ((steps, 3, 8),) in [shapes[-1:] for shapes in graph.output_shapes]


def test_sequences(tmp_path: Path) -> None:
    text = """g (float[6, 8] x, int64 i) => (float[6, 8] y, float[2, 8] z, int64 n)
        <int64 two = {2}, int64 one = {1}> {
        s = SplitToSequence <axis = 0> (x, two) a = SequenceAt(s, one)
        t = SequenceErase(s, one) u = SequenceInsert(t, a)
        n0 = SequenceLength(u) n = Identity(n0) c = ConcatFromSequence <axis = 0> (u) y = Relu(c)
        b = SequenceAt(s, i) z = Relu(b) }"""
    graph = load_graph(save(tmp_path, text))
    assert types(graph) == ["SplitToSequence", "ConcatFromSequence", "Relu", "SequenceAt", "Relu"]
    assert graph.output_shapes[op(graph, "s")] == ((2, 8),) * 3
    assert graph.output_shapes[op(graph, "y")] == ((6, 8),)
    # It is not known which third is read, but how much.
    assert graph.bytes_accessed[op(graph, "b")] == 2 * 4 * 16 + 8


def test_a_sequence_of_constants(tmp_path: Path) -> None:
    text = f"""g (float[4, 8] x, int64 i) => (float[4, 8] y) <{W}, {W.replace(" w ", " v ")}> {{
        s = SequenceConstruct(w, v) m = SequenceAt(s, i) y = MatMul(x, m) }}"""
    graph = load_graph(save(tmp_path, text))
    assert types(graph) == ["SequenceAt", "MatMul"]
    assert graph.parameter_bytes == 2 * 4 * 64
    assert types(load_graph(save(tmp_path, text) + ":i=1")) == ["MatMul"]
    with pytest.raises(InputError, match="looks at position 2 of 2"):
        load_graph(save(tmp_path, text) + ":i=2")


def test_functions_are_walked_as_what_they_stand_for(tmp_path: Path) -> None:
    text = """g (float[4, 8] x) => (float[4, 2] y) { h = f.block <alpha = 0.5> (x) y = f.last <axis = 1> (h) }
        <domain: "f", opset_import: ["" : 17]> block <alpha> (a) => (o) { b = Elu <alpha: float = @alpha> (a)
            o = Add(b, a) }
        <domain: "f", opset_import: ["" : 17]> last <axis> (a) => (o) { two = Constant <value = int64[1] {2}> ()
            zero = Constant <value = int64[1] {0}> () ax = Constant <value = int64[1] {1}> ()
            s = Slice(a, zero, two, ax) o = Softmax <axis: int = @axis> (s) }"""
    graph = load_graph(save(tmp_path, text, domains=("f",)))
    assert types(graph) == ["Elu", "Add", "Slice", "Softmax"]
    assert graph.op_names == ("x", "h/b", "h/o", "y/s", "y/o")
    assert graph.output_shapes[-1] == ((4, 2),)


def test_what_no_output_needs_costs_nothing(tmp_path: Path) -> None:
    text = f"g (float[4, 8] x) => (float[4, 8] y) <{W}> {{ y = Relu(x) a = MatMul(x, w) b = MatMul(a, w) }}"
    graph = load_graph(save(tmp_path, text))
    assert graph.op_names == ("x", "y")
