"""Prototxts: the recorded ones, the text format's forms, and what is said of malformed ones."""

from __future__ import annotations

import math
import random

import pytest
from google.protobuf import descriptor_pb2, text_format

from parity_tests.conftest import CAFFE_FILES
from repro.errors import InputError
from weights_conversion import CaffeFileError, caffe_pb2, read_prototxt
from weights_conversion.prototxt import Identifier, Message

PROTOTXTS = sorted(CAFFE_FILES.glob("*.prototxt"))


def read(tmp_path, text: str | bytes) -> Message:
    path = tmp_path / "x.prototxt"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return read_prototxt(path)


@pytest.mark.parametrize("path", [p for p in PROTOTXTS if "solver" not in p.name], ids=lambda path: path.name)
def test_recorded_nets_equal_what_protobuf_reads(path):
    net = read_prototxt(path)
    expected = text_format.Parse(path.read_text(), caffe_pb2.NetParameter(), allow_unknown_field=True)
    assert net.one("name", "") == expected.name
    assert len(net.layers) == len(expected.layer) > 0
    for layer, want in zip(net.layers, expected.layer, strict=True):
        assert layer.one("name") == want.name
        assert layer.one("type") == want.type
        assert layer.get("bottom", []) == list(want.bottom)
        assert layer.get("top", []) == list(want.top)


def test_recorded_solvers():
    assert read_prototxt(CAFFE_FILES / "stage1_solver.prototxt") == {
        "train_net": ["stage1_train.prototxt"],
        "random_seed": [0],
        "lr_policy": ["step"],
        "gamma": [0.1],
        "stepsize": [10],
        "base_lr": [1e-5],
        "max_iter": [30],
        "momentum": [0.9],
        "weight_decay": [0.0005],
        "display": [10],
        "average_loss": [10],
        "snapshot": [30],
        "snapshot_prefix": ["stage1"],
        "solver_mode": ["CPU"],
    }
    assert isinstance(read_prototxt(CAFFE_FILES / "toy_solver.prototxt").one("solver_mode"), Identifier)


def test_layer_parameters_of_a_recorded_net():
    layers = {
        layer.one("name"): layer for layer in read_prototxt(CAFFE_FILES / "stage1_train.prototxt").layers
    }
    fc6 = layers["fc6_2"].one("convolution_param")
    assert (fc6.one("dilation"), fc6.one("pad"), fc6.one("num_output")) == (12, 12, 64)
    assert [param.one("lr_mult") for param in layers["fc8-SEC_1"]["param"]] == [10, 20]
    assert layers["pool1"].one("pooling_param").one("pool") == "MAX"
    assert layers["Annotation"]["propagate_down"] == [0, 0]
    assert layers["Input"].one("image_data_param").one("shuffle") is False


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("12", 12),
        ("-7", -7),
        ("- 7", -7),
        ("0x1F", 31),
        ("017", 15),
        ("0", 0),
        ("18446744073709551615", 2**64 - 1),
        ("1.5", 1.5),
        (".5", 0.5),
        ("5.", 5.0),
        ("1e-05", 1e-5),
        ("-2.5E+3f", -2500.0),
        ("10f", 10.0),
        ("inf", math.inf),
        ("-Infinity", -math.inf),
        ("true", True),
        ("false", False),
        ("MAX", "MAX"),
        ('"MAX"', "MAX"),
        ("'single \"double\"'", 'single "double"'),
        (r'"a\n\t\\\"\'\x41\101é\u00e9\303\251"', "a\n\t\\\"'AAééé"),
        (r'"\U0001F600"', "\U0001f600"),
        ('"one " \'two \'\n  # between\n  "three"', "one two three"),
        ('"# no comment"', "# no comment"),
        ('""', ""),
    ],
)
def test_scalars(tmp_path, text, value):
    got = read(tmp_path, f"x: {text}").one("x")
    assert got == value
    assert type(got) is (Identifier if text == "MAX" else type(value))


def test_nan(tmp_path):
    assert math.isnan(read(tmp_path, "x: nan").one("x"))


@pytest.mark.parametrize(
    "text",
    [
        'a { b: 1 b: 2 } a { c: "x" }',
        'a: { b: 1; b: 2; }, a: < c: "x" >',
        'a<b:[1,2]>a<c:"x">',
        'a: [{ b: 1, b: 2 }, < c: "x" >]',
        'a [{ b: [1] b: [] b: [2] }] # the end\na { c:"x" }',
        '\ufeffa\r\n{ # one\r\n b: 1 b: 2 }\r\na { c: "x" }\r\n',
    ],
)
def test_forms_of_messages(tmp_path, text):
    assert read(tmp_path, text) == {"a": [{"b": [1, 2]}, {"c": ["x"]}]}


def test_one(tmp_path):
    message = read(tmp_path, "a: 1 b: 2 b: 3")
    assert message.one("a") == 1
    assert message.one("c") is None
    assert message.one("c", 5) == 5
    with pytest.raises(ValueError, match="'b' occurs 2 times"):
        message.one("b")


def test_old_layout(tmp_path):
    net = read(tmp_path, 'layers { name: "conv1" type: CONVOLUTION } layers { name: "relu1" type: RELU }')
    assert [(layer.one("name"), layer.one("type")) for layer in net.layers] == [
        ("conv1", "CONVOLUTION"),
        ("relu1", "RELU"),
    ]


def test_what_protobuf_prints_is_read_back(tmp_path):
    """A schema is a deep message with strings, enums, numbers and booleans: print it, read it, compare it."""

    def compare(got: Message, want) -> None:
        fields = want.ListFields()
        assert set(got) == {descriptor.name for descriptor, _ in fields}
        for descriptor, value in fields:
            values = (
                list(value) if hasattr(value, "__len__") and not isinstance(value, (str, bytes)) else [value]
            )
            assert len(got[descriptor.name]) == len(values)
            for a, b in zip(got[descriptor.name], values, strict=True):
                if descriptor.message_type is not None:
                    compare(a, b)
                elif descriptor.enum_type is not None:
                    assert a == descriptor.enum_type.values_by_number[b].name
                else:
                    assert a == b

    schema = descriptor_pb2.FileDescriptorProto()
    descriptor_pb2.DESCRIPTOR.CopyToProto(schema)
    compare(read(tmp_path, text_format.MessageToString(schema)), schema)


@pytest.mark.parametrize(
    ("text", "line", "column", "reason"),
    [
        ("a: 1\nb {\n  c: 2\n", 4, 1, "expected a field name or '}', found the end of the file"),
        ("a: 1\n}", 2, 1, "expected a field name, found '}'"),
        ("a { b: 1 >", 1, 10, "found '>'"),
        ("a < b: 1 }", 1, 10, "found '}'"),
        ("a:", 1, 3, "the file ends here"),
        ("a 5", 1, 3, "expected ':' before '5'"),
        ('a "x"', 1, 3, "expected ':'"),
        ("a [1]", 1, 4, "expected ':' before '1'"),
        ("a: [1 2]", 1, 7, "expected ',' or ']'"),
        ("a: [1,]", 1, 7, "expected a value, found ']'"),
        ("a: [1", 1, 6, "expected ',' or ']'"),
        ("a: [[1]]", 1, 5, "expected a value, found '['"),
        ('\n  a: "open\n', 2, 6, "string without end"),
        ("a: 'open", 1, 4, "string without end"),
        ('a: "x\\q"', 1, 4, "escape"),
        ('a: "\\777"', 1, 4, "escape"),
        ('a: "\\ud800"', 1, 4, "escape"),
        ('a: "\\U00110000"', 1, 4, "escape"),
        ('a: "\\xff"', 1, 4, "not UTF-8"),
        ("a: 12abc", 1, 4, "unexpected: '12abc'"),
        ("a: 1.2.3", 1, 4, "unexpected"),
        ("a: 09", 1, 4, "no octal"),
        ("a: 18446744073709551616", 1, 4, "beyond 64 bits"),
        ("a: -9223372036854775809", 1, 5, "beyond 64 bits"),
        ("a: " + "9" * 100_000, 1, 4, "beyond 64 bits"),
        ("a: -MAX", 1, 5, "expected a value"),
        ("a: +1", 1, 4, "unexpected"),
        ("a: 1,,", 1, 6, "found ','"),
        ("[caffe.ext]: 1", 1, 1, "expected a field name"),
        ("# a comment\n  @", 2, 3, "unexpected: '@'"),
        ("a: 1\0", 1, 5, "unexpected"),
        (" " * 100_000 + "@", 1, 100_001, "unexpected"),
        ("#\n" * 100_000 + "@", 100_001, 1, "unexpected"),
        ("a: " + "9" * 1_000_000 + "x", 1, 4, "unexpected"),
        ("a: '" + "\\x41" * 100_000, 1, 4, "string without end"),
        ("a {" * 65 + "}" * 65, 1, 65 * 3, "deeper than 64"),
        ("a {" * 100_000, 1, 65 * 3, "deeper than 64"),
        ("a: [" + "{a: [" * 1000, 1, 5 + 64 * 5, "deeper than 64"),
        (b'a: 1\nb: "\xff"', 2, 5, "not UTF-8 text"),
    ],
)
def test_malformed_text(tmp_path, text, line, column, reason):
    with pytest.raises(CaffeFileError) as caught:
        read(tmp_path, text)
    message = str(caught.value)
    assert f"{tmp_path / 'x.prototxt'}: line {line}, column {column}: " in message
    assert reason in message
    assert "\n" not in message
    assert len(message) < 400


def test_deepest_allowed(tmp_path):
    message = read(tmp_path, "a {" * 64 + "}" * 64)
    for _ in range(64):
        message = message.one("a")
    assert message == {}


@pytest.mark.parametrize("text", ["", "\n\n", "# only a comment", "\ufeff"])
def test_no_fields(tmp_path, text):
    with pytest.raises(CaffeFileError, match="no fields"):
        read(tmp_path, text)


def test_files_of_another_kind(tmp_path):
    with pytest.raises(CaffeFileError, match="No such file"):
        read_prototxt(tmp_path / "missing.prototxt")
    with pytest.raises(InputError, match="a folder, a file expected"):
        read_prototxt(tmp_path)
    (tmp_path / "utf16.prototxt").write_text('name: "a"', encoding="utf-16")
    with pytest.raises(CaffeFileError, match="line 1, column 1: not UTF-8"):
        read_prototxt(tmp_path / "utf16.prototxt")
    with pytest.raises(CaffeFileError, match="of the kind caffemodel, a prototxt expected in its place"):
        read_prototxt(CAFFE_FILES / "toy_iter_6.caffemodel")
    with pytest.raises(CaffeFileError, match="more than"):
        read(tmp_path, "a: 1\n" * 4_000_000)


def test_mutated_prototxts_parse_or_raise(tmp_path):
    rng = random.Random(11)
    data = (CAFFE_FILES / "toy_train.prototxt").read_bytes()
    raised = 0
    for _ in range(400):
        mutated = bytearray(data)
        for _ in range(rng.choice((1, 4))):
            position = rng.randrange(len(mutated))
            mutated[position : position + rng.randrange(3)] = rng.choice(
                (b'"', b"{", b"}", b"\\", b"#", rng.randbytes(2))
            )
        try:
            read(tmp_path, bytes(mutated))
        except CaffeFileError:
            raised += 1
    assert 100 < raised < 400
