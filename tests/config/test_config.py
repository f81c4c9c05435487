"""Every mistake in a config gives one line that names the place, what was expected and what was found."""

import ast
import random
import re
import time
from pathlib import Path

import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

from kapdist.cli import app
from kapdist.config import MAY_CHANGE, AttackConfig, Config, Section, dotted_keys, flatten
from kapdist.config.certify import CertifyConfig
from kapdist.config.evaluation import EvaluationConfig
from kapdist.config.fields import kinds_in
from kapdist.config.file import dump_config, load_config, names_a_file
from kapdist.config.plain_yaml import parse
from kapdist.errors import InputError
from kapdist.plan.training import make_plan
from launch.cluster import ClusterConfig

ROOT = Path(__file__).parents[2]
MINIMAL = "data: {train: train.beton, validation: test.beton}\n"


@pytest.fixture
def write(tmp_path: Path):
    def write(text: str, name: str = "run.yaml") -> Path:
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write


def refusal(model: type, path: Path, *overrides: str) -> str:
    with pytest.raises(InputError) as caught:
        load_config(model, path, overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_defaults_then_file_then_overrides(write) -> None:
    path = write(MINIMAL + "optim: {lr: 0.25, momentum: 0.5}\n")
    config = load_config(Config, path, ["optim.lr=0.125", "train.epochs=3"])
    assert (config.optim.lr, config.optim.momentum, config.train.epochs) == (0.125, 0.5, 3)
    assert config.optim.label_smoothing == Config.model_fields["optim"].default.label_smoothing


def test_a_file_may_have_an_equals_sign_in_its_path(write, monkeypatch: pytest.MonkeyPatch) -> None:
    """As below a folder of a sweep, lr=0.1."""
    folder = write("", "eps=1.yaml").parent
    monkeypatch.chdir(folder)
    (folder / "lr=0.1").mkdir()
    write("epz: 1", "lr=0.1/aa.yaml")
    files = ("aa.yaml", "lr=0.1/aa.yaml", "/out/lr=0.1/mine/configs/attacks/aa.yaml", "eps=1.yaml")
    assert all(map(names_a_file, files))
    long = "model.arguments={a: " + "1" * 9999 + ".yaml"
    assert not any(map(names_a_file, ("eps=8/255", "name=mine", "data.beton=a/b.beton", "eps=2.yaml", long)))
    for command in (["certify"], ["attack", "run"], ["attack", "sanity"]):
        error = CliRunner().invoke(app, [*command, "run", "lr=0.1/aa.yaml", "seed=1"]).exception
        assert str(error).startswith("lr=0.1/aa.yaml: epz: expected a known key")


def test_a_run_is_named_after_its_file(write) -> None:
    assert load_config(Config, write(MINIMAL, "kap.yaml")).name == "kap"
    assert load_config(Config, write(MINIMAL + "name: other", "kap.yaml")).name == "other"


@pytest.mark.parametrize("text", ["3e-4", "3.0e-4", "0.0003", "3E-4"])
def test_scientific_notation_is_a_number(write, text: str) -> None:
    assert load_config(Config, write(MINIMAL + f"optim: {{weight_decay: {text}}}")).optim.weight_decay == 3e-4
    assert load_config(Config, write(MINIMAL), [f"optim.weight_decay={text}"]).optim.weight_decay == 3e-4


@pytest.mark.parametrize(
    ("wrong", "nearest"),
    [
        ("optim: {learning_rate: 1}", ""),
        ("optim: {weight_decya: 1}", "optim.weight_decay"),
        ("train: {epoch: 3}", "train.epochs"),
        ("optimizer: {lr: 3}", "optim"),
        ("lr: 3", "optim.lr"),
        ("kap: {poolsize: 3}", "kap.pool_size"),
    ],
)
def test_an_unknown_key_names_the_nearest(write, wrong: str, nearest: str) -> None:
    path = write(MINIMAL + wrong)
    message = refusal(Config, path)
    assert str(path) in message
    assert "expected a known key" in message
    assert nearest in message


def test_an_unknown_override_names_the_nearest(write) -> None:
    assert "nearest: train.batch_size" in refusal(Config, write(MINIMAL), "train.batchsize=3")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("optim.lr=-1", "greater than 0"),
        ("optim.momentum=1", "less than 1"),
        ("optim.lr=fast", "a valid number"),
        ("optim.lr=inf", "a finite number"),
        ("train.epochs=0", "greater than or equal to 1"),
        ("train.epochs=1.5", "a valid integer"),
        ("kap.pool_size=4", "an odd number"),
        ("model.name=vgg", "'resnet18'"),
        ("data.resolution=4", "greater than or equal to 8"),
        ("name=../elsewhere", "a name of letters, digits and . _ + -"),
        ("data.train=", "a path"),
    ],
)
def test_a_bad_value_names_the_bound(write, override: str, expected: str) -> None:
    message = refusal(Config, write(MINIMAL), override)
    assert expected in message
    assert override in message
    assert override.partition("=")[2] in message.rpartition("found")[2]


def test_a_duplicate_key_is_refused(write) -> None:
    message = refusal(Config, write(MINIMAL + "seed: 1\nseed: 2\n"))
    assert "line 3" in message
    assert "duplicate key seed" in message
    assert "override seed: expected one value" in refusal(Config, write(MINIMAL), "seed=1", "seed=2")


def test_files_that_are_no_configs(write, tmp_path: Path) -> None:
    assert "expected a config file, found nothing" in refusal(Config, tmp_path / "absent.yaml")
    assert "expected YAML" in refusal(Config, write("data: {train: ["))
    assert "expected a mapping" in refusal(Config, write("- 1\n- 2\n"))
    assert "data: expected a value, found nothing" in refusal(Config, write("seed: 1\n"))
    assert "expected section.key=value" in refusal(Config, write(MINIMAL), "seed")


def test_a_file_says_what_differs_from_its_base(write, tmp_path: Path) -> None:
    below = "optim: {lr: 0.25, momentum: 0.5}\nmodel: {mean: [0.1, 0.2, 0.3]}\nname: lowest\n"
    write(MINIMAL + below, "lowest.yaml")
    write("base: lowest.yaml\noptim: {lr: 0.5}\nname: middle\n", "middle.yaml")
    (tmp_path / "deeper").mkdir()
    path = write("base: ../middle.yaml\nmodel: {mean: [0.4, 0.5, 0.6]}\n", "deeper/upper.yaml")
    config = load_config(Config, path, ["train.epochs=3"])
    assert (config.optim.lr, config.optim.momentum, config.train.epochs) == (0.5, 0.5, 3)
    assert config.model.mean == (0.4, 0.5, 0.6)  # a list is one value
    assert config.name == "upper"  # or two runs would share a directory
    whole = load_config(Config, write(dump_config(config), "whole.yaml"))
    assert whole == config


def test_a_config_of_the_package_is_one_anywhere(write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    named = load_config(Config, Path("kapdist:fashion_mnist/kap.yaml"))
    assert named == load_config(Config, ROOT / "configs" / "fashion_mnist" / "kap.yaml")
    upper = load_config(Config, write("base: kapdist:fashion_mnist/kap.yaml\nname: kap\noptim: {lr: 0.5}\n"))
    assert upper == named.model_copy(update={"optim": named.optim.model_copy(update={"lr": 0.5})})
    nowhere = refusal(Config, Path("kapdist:fashion_mnist/no.yaml"))
    assert nowhere.startswith("kapdist:fashion_mnist/no.yaml: expected one of ")
    assert "(kapdist:cifar10/kap.yaml comes with the package)" in refusal(Config, Path("configs/cifar10/kap.yaml"))


def test_bases_that_are_refused(write, tmp_path: Path) -> None:
    write(MINIMAL + "base: b.yaml", "a.yaml")
    write("base: c.yaml", "b.yaml")
    path = write("base: a.yaml", "c.yaml")
    found = "expected bases that come to an end, found c.yaml -> a.yaml -> b.yaml -> c.yaml"
    assert f"{tmp_path / 'b.yaml'}: base: {found}" in refusal(Config, path)
    assert "found run.yaml -> run.yaml" in refusal(Config, write(MINIMAL + "base: run.yaml"))
    absent = refusal(Config, write("base: absent.yaml"))
    assert f"{tmp_path / 'run.yaml'}: base: expected a config file, found nothing at" in absent
    for wrong in ("", "3", "[a.yaml, b.yaml]", "{a: 1}"):
        assert "base: expected the path of a config file" in refusal(Config, write(f"base: {wrong}"))
    write("- 1", "list.yaml")
    assert "list.yaml: expected a mapping" in refusal(Config, write("base: list.yaml"))
    assert "expected a known key" in refusal(Config, write(MINIMAL), "base=a.yaml")


def test_a_mistake_is_looked_for_in_the_file_that_states_it(write, tmp_path: Path) -> None:
    write(MINIMAL + "optim: {lr: -1}\ntrain: {epoch: 3}\n", "wrong.yaml")
    upper = write("base: wrong.yaml\noptim: {momentum: 0.5}\n", "upper.yaml")
    message = refusal(Config, upper, "train.epochs=2")
    assert message.startswith(f"{tmp_path / 'wrong.yaml'}: optim.lr: ")
    write("base: wrong.yaml\noptim: {lr: 1}\n", "upper.yaml")
    assert refusal(Config, upper).startswith(f"{tmp_path / 'wrong.yaml'}: train.epoch: expected a known key")
    write(MINIMAL, "right.yaml")
    write("base: right.yaml\noptim: {lr: -1}\n", "upper.yaml")
    assert refusal(Config, upper).startswith(f"{upper}: optim.lr: ")
    write("seed: 1", "right.yaml")
    assert refusal(Config, upper).startswith(f"{upper}: optim.lr: ")
    write("dta: {}", "right.yaml")
    write("base: right.yaml", "upper.yaml")
    assert refusal(Config, upper).startswith(f"{tmp_path / 'right.yaml'}: dta: expected a known key (nearest: data")
    write("seed: 1", "right.yaml")
    assert refusal(Config, upper).startswith(f"{upper}: data: expected a value, found nothing")


def test_eps_may_be_a_fraction(write) -> None:
    assert load_config(AttackConfig, write("eps: 8/255")).eps == 8 / 255
    assert load_config(AttackConfig, write("{}"), ["eps=4/255"]).eps == 4 / 255
    assert load_config(AttackConfig, write("eps: 0.5")).eps == 0.5


@pytest.mark.parametrize("eps", ["8", "[2/255, 4]"])
def test_eps_beyond_all_images_is_refused(write, eps: str) -> None:
    """8 for 8/255 would break every image, and the robust accuracy of 0 would be believed."""
    message = refusal(AttackConfig, write(f"eps: {eps}"))
    assert "expected eps of at most 1 with Linf (images are in [0, 1]; 8/255 may be written)" in message
    assert load_config(AttackConfig, write(f"eps: {eps}\nnorm: L2")).norm == "L2"


def test_two_eps_of_one_name_are_refused(write) -> None:
    """The columns of a stage are named after its eps: a second one would write over the first's breaks."""
    message = refusal(AttackConfig, write("eps: [8/255, 0.0313725]"))
    assert "eps: expected sizes that differ in their first six digits, not two of 0.0313725, found" in message
    assert load_config(AttackConfig, write("eps: [8/255, 0.031373]")).eps == (8 / 255, 0.031373)


@pytest.mark.parametrize("eps", ["0", "-1/255", "0/255", "8/0", "-0.1", ".nan", ".inf", "large"])
def test_eps_must_be_above_zero(write, eps: str) -> None:
    message = refusal(AttackConfig, write("{}"), f"eps={eps}")
    assert f"override 'eps={eps}'" in message


def test_attacks_go_with_version_custom(write) -> None:
    assert "attacks with version custom" in refusal(AttackConfig, write("{version: plus, attacks: [square]}"))
    assert load_config(AttackConfig, write("attacks: [square]")).version == "custom"
    assert "attacks with version custom" in refusal(AttackConfig, write("version: custom"))
    assert load_config(AttackConfig, write("{version: custom, attacks: [square]}")).attacks == ("square",)


def test_nothing_mutates_a_config(write) -> None:
    config = load_config(Config, write(MINIMAL))
    with pytest.raises(ValidationError):
        config.seed = 3  # type: ignore[misc]


def test_the_resolved_config_reproduces_itself(write) -> None:
    config = load_config(Config, write(MINIMAL), ["optim.lr=3e-4", "model.mean=[0.1,0.2,0.3]"])
    again = load_config(Config, write(dump_config(config), "resolved.yaml"))
    assert again == config
    assert flatten(again) == flatten(config)


def test_what_may_change_exists() -> None:
    assert set(MAY_CHANGE) <= set(dotted_keys(Config))


def attributes_read_in(folder: Path) -> set[str]:
    """Return the names that others than the config itself read. A plan resolves some keys and is read in turn."""
    read = set()
    for path in folder.rglob("*.py"):
        if path.parent != folder / "config":
            read |= {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
    return read


@pytest.mark.parametrize("model", [Config, AttackConfig, EvaluationConfig, CertifyConfig])
def test_every_key_reaches_a_line_of_code(model: type[Section]) -> None:
    read = attributes_read_in(ROOT / "kapdist")
    unread = [key for key in dotted_keys(model) if key.rpartition(".")[2] not in read]
    # The model's section is handed to the architecture as a whole.
    unread = [key for key in unread if not key.startswith("model.")]
    assert not unread


@pytest.mark.parametrize(
    "path", ["/a #b", "/a#b", "#b", "/a ", "&x /b", "!!str /b", "/a\\b", "/a\n b", "/it's", "/100%j", "'/a #b'"]
)
def test_a_word_is_taken_whole(path: str) -> None:
    """YAML would leave a part of most of these out, as a comment or for its own purposes."""
    config = load_config(Config, None, [f"data.train={path}", "data.validation=b", "name=x"])
    assert str(config.data.train) == path.strip("'")


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ('data.train="/a" #b', "a YAML value and nothing after it, found a comment"),
        ("train.epochs=3 #x", "found '3 #x'"),
        ("name=a: b", "found {'a': 'b'}"),
        ("data.train=/a: b", "found {'/a': 'b'}"),
    ],
)
def test_a_word_of_which_a_part_would_be_lost_is_refused(word: str, said: str) -> None:
    words = [w for w in ("data.train=a", "data.validation=b", "name=x") if w.split("=")[0] != word.split("=")[0]]
    with pytest.raises(InputError, match=re.escape(said)):
        load_config(Config, None, [*words, word])


def test_margins_of_a_number_are_no_part_of_it() -> None:
    config = load_config(Config, None, ["data.train=a", "data.validation=b", "name=x", "train.epochs= 3 "])
    assert config.train.epochs == 3


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("seed: " + "9" * 5000, "line 2: expected YAML, found '999"),
        ("seed: 9223372036854775808", "64 bits"),
        ("optim: {lr: !!float abc}", "'abc' as a value of kind 'float'"),
        ("name: !!timestamp 2020-13-45", "kind 'timestamp'"),
        ("name: !!python/object/apply:os.getcwd []", "kind 'python/object"),
        ("train: !!set {a, b}", "kind 'set'"),
        ("model: !!binary aGk=", "kind 'binary'"),
        ("optim: {nesterov: !!bool maybe}", "'maybe' as a value of kind 'bool'"),
        ("runs_dir: ${name", "interpolations that resolve"),
        ("runs_dir: ${absent}", "interpolations that resolve"),
        ("runs_dir: ${runs_dir}", "interpolations that resolve"),
        ("~: 3", "expected a known key"),
        ("? [a, b]\n: 3", "a key that is no word"),
        ("seed: " + "[" * 2000, "levels"),
        ("seed: &a [*a]", "levels"),
        ("name: " + "a" * 300, "at most 100 characters"),
        ("base: " + "a" * 5000, "expected a config file"),
        ("base: " + "a/" * 5000, "expected a config file"),
        ('runs_dir: "a\\0b"', "text without the character NUL"),
        ('runs_dir: "a\\ud800b"', "text of characters that files can hold"),
        ("name: \x07", "special characters are not allowed"),
        ("k" * 500 + ": 3", "expected a known key"),
    ],
)
def test_text_that_is_no_config(write, text: str, words: str) -> None:
    message = refusal(Config, write(MINIMAL + text + "\n"))
    assert words in message
    assert len(message) < 2000


def test_a_file_that_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_bytes(b"name: \xff\n")
    assert "a readable config file" in refusal(Config, tmp_path / "run.yaml")
    assert "a readable config file, found a folder" in refusal(Config, tmp_path)
    (tmp_path / "config.yaml").touch()
    assert f"a folder (of a run, whose config is {tmp_path}/config.yaml)" in refusal(Config, tmp_path)
    (tmp_path / "large.yaml").write_bytes(b"#" * (1 << 21))
    assert "1,048,576 bytes" in refusal(Config, tmp_path / "large.yaml")


def test_words_that_are_not_utf_8(write) -> None:
    word = "name=" + b"\xff".decode(errors="surrogateescape")
    refusal(Config, write(MINIMAL), word).encode()  # a line that can be printed


def test_a_path_with_a_line_break_makes_one_line() -> None:
    assert "\n" not in str(InputError(Path("a\nb"), "c", "d\u2028e"))


def test_values_of_yaml(write) -> None:
    text = "optim: &o {lr: 1e-3}\nadversarial: {mode: off}\nmodel: {blurpool: yes}\nruns_dir: runs/${name}/0x10\n"
    config = load_config(Config, write(MINIMAL + text), ["seed=0x10", "optim={momentum: .5}", "name='17'"])
    assert (config.optim.lr, config.optim.momentum, config.model.blurpool) == (1e-3, 0.5, True)
    assert (config.seed, config.name, config.adversarial.mode) == (16, "17", "off")
    assert config.runs_dir == Path("runs/17/0x10")


def sections_of(model: type[Section]) -> list[tuple[type[Section], str]]:
    found = [(model, "")]
    for key in dotted_keys(model):
        kind: type = model
        for part in key.split("."):
            kind = kind.model_fields[part].annotation  # type: ignore[attr-defined,assignment]
        if isinstance(kind, type) and issubclass(kind, Section):
            found.append((kind, f"{key}."))
    return found


NUMERIC = [
    (model, prefix + key)
    for model in (Config, AttackConfig, EvaluationConfig, CertifyConfig, ClusterConfig)
    for section, prefix in sections_of(model)
    for key, field in section.model_fields.items()
    if kinds_in(field.annotation) & {int, float} and bool not in kinds_in(field.annotation)
]


@pytest.mark.parametrize("value", ["true", "false", ".nan", ".inf", "-.inf", "nan", "Infinity", "[true]", "[.nan]"])
def test_no_numeric_key_takes_what_is_no_number(write, value: str) -> None:
    files = {Config: write(MINIMAL), AttackConfig: write("{}", "attack.yaml")}
    assert len(NUMERIC) > 80
    for model, key in NUMERIC:
        assert key in refusal(model, files.get(model), f"{key}={value}")


PIECES = [
    *"~:[]{},'\"&*!|>%@`#?-=.\n\t\\",
    *(
        "<<",
        "---",
        "...",
        "${",
        "}",
        "${name}",
        "${oc.env:X}",
        "!!float",
        "!!set",
        "!!int",
        "!!binary",
        "&a",
        "*a",
        "???",
    ),
    *(
        "true",
        "null",
        ".nan",
        "-.inf",
        "1e999",
        "9" * 5000,
        "0x",
        "08",
        "-1",
        "1_0",
        "\0",
        "\udcff",
        "\u2028",
        "\x85",
        "é",
    ),
    *("name", "seed", "data", "train", "optim", "lr", "base", "runs_dir", "model", "mean", "a" * 120, "[" * 50),
]


def test_whatever_is_written_ends_in_a_config_or_in_one_line(tmp_path: Path) -> None:
    chance, accepted, told = random.Random(0), 0, list[str]()
    path = tmp_path / "run.yaml"
    for number in range(2000):
        model = (Config, AttackConfig, EvaluationConfig, CertifyConfig, ClusterConfig)[number % 5]
        written = "".join(chance.choices([*PIECES, " ", ": ", "\n"], k=chance.randrange(8)))
        keys = [*dotted_keys(model), *PIECES]
        words = [f"{chance.choice(keys)}={''.join(chance.choices(PIECES, k=chance.randrange(3)))}"]
        path.write_bytes((MINIMAL * (model is Config) + written).encode(errors="surrogatepass"))
        try:
            load_config(model, path, words * chance.randrange(2))
            accepted += 1
        except InputError as error:
            told.append(str(error))
    assert all(len(line.encode().splitlines()) == len(line.splitlines()) == 1 for line in told)
    assert min(accepted, len(told)) > 50


def test_a_long_word_that_begins_as_a_number_takes_no_time() -> None:
    """The one that looks for numbers goes through a word once, and not once for each place to part it at."""
    before = time.process_time()
    word = "9" * 100_000 + "x"
    assert parse(word, "word") == word
    assert time.process_time() - before < 5


def test_a_warm_up_that_nobody_wrote_fits_into_the_training(write) -> None:
    short = load_config(Config, write(MINIMAL), ["train.epochs=1"])
    assert short.optim.warmup_epochs == 0.5
    assert load_config(Config, write(dump_config(short), "again.yaml")) == short
    assert load_config(Config, write(MINIMAL), ["train.epochs=2"]).optim.warmup_epochs == 2
    written = load_config(Config, write(MINIMAL), ["train.epochs=1", "optim.warmup_epochs=2"])
    with pytest.raises(InputError, match=r"warmup_epochs: expected at most train.epochs = 1"):
        make_plan(written, 10_000, 1)
