import copy
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from kapdist.kap import KAPConv2d, fold, kapify, load_noise_state, noise, noise_state, seed_noise
from kapdist.kap.noise import NoiseSource


def small_cnn(noise_std: float = 0.5) -> nn.Module:
    layers = [nn.Conv2d(3, 9, 3), nn.ReLU(), nn.Conv2d(9, 12, 3), nn.ReLU(), nn.Conv2d(12, 12, 3, groups=3)]
    return kapify(nn.Sequential(*layers), noise_std=noise_std)


@pytest.fixture(name="x")
def images() -> Tensor:
    return torch.rand(4, 3, 10, 10)


def silent_conv(layout: str, stride: int, groups: int, noise_std: float, pool_size: int = 3) -> KAPConv2d:
    """Puts out nothing but its noise."""
    options = {"pool_size": pool_size, "layout": layout, "pool_stride": stride, "noise_std": noise_std}
    conv = KAPConv2d(4, 12, 1, groups=groups, **options)
    nn.init.zeros_(conv.weight)
    nn.init.zeros_(conv.bias)
    return conv


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("pool_size", [1, 3])
@pytest.mark.parametrize(
    ("layout", "stride", "groups"),
    [("sheet", 1, 1), ("line", 1, 1), ("sheet", 2, 1), ("line", 2, 1), ("line", 1, 4)],
)
def test_noise_is_white_whatever_is_averaged(
    layout: str, stride: int, groups: int, pool_size: int, memory_format: torch.memory_format
) -> None:
    conv = silent_conv(layout, stride, groups, 0.7, pool_size)
    samples = conv(torch.zeros(48, 4, 64, 64).to(memory_format=memory_format)).detach().double()
    assert samples.shape[1] == conv.pooled_channels
    samples = samples.movedim(1, -1).flatten(0, 2)
    expected = 0.7**2 * torch.eye(conv.pooled_channels, dtype=torch.double)

    # A sample covariance has variance (s_ii s_jj + s_ij^2) / n, a sample mean s_ii / n: 5 standard errors, a
    # hundredth of the variance. Averaged, neighbours would share a third of theirs or more.
    covariance_error = ((0.7**4 + expected**2) / len(samples)).sqrt()
    assert ((samples.T.cov() - expected).abs() < 5 * covariance_error).all()
    assert (samples.mean(0).abs() < 5 * 0.7 / len(samples) ** 0.5).all()


def test_noise_of_neighbouring_pixels_and_images_is_independent() -> None:
    image = silent_conv("sheet", 1, 1, noise_std=1.0)(torch.zeros(2, 4, 128, 128)).detach().double()
    for one, other in ((image[0], image[1]), (image[..., 1:], image[..., :-1])):
        # The product of two independent numbers of variance 1 averages to 0 +- 1 / sqrt(n).
        products = (one * other).movedim(-3, 0).flatten(1)
        assert (products.mean(1).abs() < 5 / products.shape[1] ** 0.5).all()


@pytest.mark.parametrize("mode", ["fresh", "fixed"])
def test_an_average_changes_no_draw(mode: str) -> None:
    """So that a row with KAP and one with the noise alone differ in the average and in nothing else."""
    x = torch.zeros(2, 4, 5, 5)
    convs = [silent_conv("sheet", 1, 1, 0.7, pool_size) for pool_size in (1, 3)]
    for conv in convs:
        seed_noise(conv, 5)
        conv.noise_source.mode = mode
    for _ in range(2):
        assert torch.equal(convs[0](x), convs[1](x))


@pytest.mark.parametrize("pool_size", [1, 3])
def test_channels_last_takes_the_same_draws_in_memory_order(pool_size: int) -> None:
    x = torch.zeros(2, 4, 5, 6)
    conv = silent_conv("sheet", 1, 1, 0.7, pool_size)
    seed_noise(conv, 5)
    drawn, state = conv(x), noise_state(conv)
    seed_noise(conv, 5)
    last = conv(x.to(memory_format=torch.channels_last))
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(last.permute(0, 2, 3, 1).flatten(), drawn.flatten())
    assert all(torch.equal(value, state[key]) for key, value in noise_state(conv).items())


def test_fresh_noise_is_new_at_every_call_in_training_and_evaluation(x: Tensor) -> None:
    model = small_cnn()
    for mode in (True, False):
        model.train(mode)
        assert not torch.equal(model(x), model(x))


def test_noise_off_is_the_model_without_noise(x: Tensor) -> None:
    model = small_cnn()
    quiet = small_cnn(noise_std=0.0)
    quiet.load_state_dict(model.state_dict())
    with noise(model, "off"):
        assert torch.equal(model(x), quiet(x))


def test_fixed_noise_depends_neither_on_batch_nor_position_nor_memory_format(x: Tensor) -> None:
    model = small_cnn().double()
    x = x.double()
    with noise(model, "fixed"):
        logits = model(x)
        torch.testing.assert_close(model(x), logits, rtol=0, atol=0)
        torch.testing.assert_close(model(x.flip(0)), logits.flip(0), rtol=0, atol=1e-12)
        torch.testing.assert_close(model(x[2:3]), logits[2:3], rtol=0, atol=1e-12)
        channels_last = x.to(memory_format=torch.channels_last)
        torch.testing.assert_close(model(channels_last), logits, rtol=0, atol=1e-12)
        model(torch.rand(1, 3, 16, 16).double())  # another resolution in between changes nothing
        torch.testing.assert_close(model(x), logits, rtol=0, atol=0)
    with noise(model, "off"):
        assert not torch.allclose(model(x), logits)


def test_fixed_noise_is_a_function_of_seed_and_layer() -> None:
    first, second = silent_conv("sheet", 1, 1, 1.0), silent_conv("sheet", 1, 1, 1.0)
    pair = nn.Sequential(first, kapify(nn.Conv2d(12, 12, 1, bias=False), noise_std=1.0))
    x = torch.zeros(1, 4, 3, 3)
    with noise(first, "fixed", seed=1):
        one = first(x)
    with noise(second, "fixed", seed=1):
        assert torch.equal(second(x), one)
    with noise(second, "fixed", seed=2):
        assert not torch.equal(second(x), one)
    nn.init.zeros_(pair[1].weight)
    with noise(pair, "fixed", seed=1):
        assert not torch.equal(pair(x), pair[0](x))


def test_previous_mode_and_stream_come_back(x: Tensor) -> None:
    model = small_cnn()
    undisturbed = copy.deepcopy(model)

    def fail() -> None:
        with noise(model, "off"), noise(model, "fixed", seed=7):
            model(x)
            raise RuntimeError("within")

    with pytest.raises(RuntimeError, match="within"):
        fail()
    assert torch.equal(model(x), undisturbed(x))
    with noise(model, "fresh", seed=7):
        seeded = model(x)
    assert torch.equal(model(x), undisturbed(x))
    seed_noise(model, 7)
    assert torch.equal(model(x), seeded)


def test_global_generator_is_left_alone(x: Tensor) -> None:
    before = torch.get_rng_state()
    model = kapify(nn.Sequential(nn.Conv2d(3, 9, 3, device="meta")).to_empty(device="cpu"), noise_std=1.0)
    for mode in ("fresh", "fixed", "off"):
        with noise(model, mode, seed=3):
            model(x)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(5)
    one = silent_conv("sheet", 1, 1, 1.0)(torch.zeros(1, 4, 3, 3))
    torch.manual_seed(6)
    assert torch.equal(silent_conv("sheet", 1, 1, 1.0)(torch.zeros(1, 4, 3, 3)), one)


def test_saved_state_continues_the_stream(x: Tensor, tmp_path: Path) -> None:
    model = small_cnn()
    seed_noise(model, 11)
    model(x)
    torch.save(noise_state(model), tmp_path / "noise.pt")
    expected = [model(x), model(x)]

    other = small_cnn()
    other.load_state_dict(model.state_dict())
    load_noise_state(other, torch.load(tmp_path / "noise.pt", weights_only=True))
    assert all(torch.equal(other(x), logits) for logits in expected)
    with noise(model, "fixed"), noise(other, "fixed"):  # the seed of the fixed noise is part of the state
        assert torch.equal(other(x), model(x))


@pytest.mark.parametrize("place", ["0.cpu", "0.1.cpu"])
def test_a_state_of_generators_begins_new_streams(x: Tensor, place: str) -> None:
    """As older versions wrote it: every rank's differs, and so must what it continues with."""
    model = small_cnn()
    old = [{"0.seed": torch.tensor(11), place: torch.Generator().manual_seed(s).get_state()} for s in (1, 1, 2)]
    logits = []
    for state in old:
        with pytest.warns(
            UserWarning, match="of torch's generators, as older versions drew: its streams begin anew"
        ):
            load_noise_state(model, state)
        logits.append(model(x))
    assert torch.equal(logits[0], logits[1])
    assert not torch.equal(logits[0], logits[2])
    load_noise_state(model, noise_state(model))  # of today's form: quietly


def test_layers_draw_in_any_order_the_same(x: Tensor) -> None:
    model = nn.ModuleList([small_cnn(), nn.Sequential()])
    first, second = model[0][0], model[0][2]
    y = torch.rand(2, 9, 6, 6)
    seed_noise(model, 5)
    one = [first(x), second(y), first(x), second(y)]
    seed_noise(model, 5)
    other = [second(y), second(y), first(x), first(x)]
    assert all(torch.equal(one[i], other[j]) for i, j in ((0, 2), (1, 0), (2, 3), (3, 1)))
    quiet = kapify(nn.Conv2d(3, 9, 3))
    quiet.load_state_dict(first.state_dict())
    assert not torch.equal(one[0] - quiet(x), one[2] - quiet(x))


def test_streams_of_layers_and_modes_differ() -> None:
    source = NoiseSource(seed=3)
    like = torch.empty(0)
    draws = [source.streams.fresh((64,), 0, like), source.streams.fresh((64,), 1, like)]
    draws += [source.streams.fixed((64,), 0, like), source.streams.fixed((64,), 1, like)]
    correlation = torch.corrcoef(torch.stack(draws)) - torch.eye(4)
    assert correlation.abs().max() < 5 / 64**0.5
    assert not any(torch.equal(draws[i], draws[j]) for i in range(4) for j in range(i))


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing_is_refused_or_exact(x: Tensor, use_reentrant: bool) -> None:
    model = small_cnn()
    images = x.requires_grad_()

    def loss() -> Tensor:
        return checkpoint(model, images, use_reentrant=use_reentrant).square().sum()

    with pytest.raises(RuntimeError, match="fresh activation noise cannot be drawn within a backward pass"):
        loss().backward()
    for mode in ("off", "fixed"):
        with noise(model, mode):
            expected = torch.autograd.grad(model(images).square().sum(), model[0].weight)[0]
            model.zero_grad()
            loss().backward()
        torch.testing.assert_close(model[0].weight.grad, expected)
    model(images).sum().backward()  # and the model still works


def test_who_seeds_anew_within_a_backward_pass_may_draw(x: Tensor) -> None:
    """The same noise is drawn again, and what was drawn before and after it stays as it was."""
    model, undisturbed = small_cnn(), small_cnn()
    undisturbed.load_state_dict(model.state_dict())
    images = x.requires_grad_()

    def seeded(images: Tensor) -> Tensor:
        with noise(model, "fresh", seed=7):
            return model(images)

    expected = torch.autograd.grad(seeded(images).square().sum(), images)[0]
    checkpoint(seeded, images, use_reentrant=False).square().sum().backward()
    torch.testing.assert_close(images.grad, expected)
    assert torch.equal(model(x), undisturbed(x))

    def afterwards(gradient: Tensor) -> None:
        seeded(images)
        model(images)

    out = model(images)
    out.register_hook(afterwards)
    with pytest.raises(RuntimeError, match="within a backward pass"):
        out.sum().backward()


@pytest.mark.parametrize("mode", ["fresh", "fixed"])
@pytest.mark.parametrize("pool_size", [1, 3])
def test_noise_is_not_exported(x: Tensor, mode: str, pool_size: int) -> None:
    model = kapify(nn.Sequential(nn.Conv2d(3, 9, 3), nn.ReLU()), noise_std=0.5, pool_size=pool_size)
    with noise(model, mode), pytest.raises(RuntimeError, match="activation noise cannot be exported"):
        torch.export.export(model, (x,))
    with noise(model, "off"):
        exported = torch.export.export(model, (x,)).module()
        torch.testing.assert_close(exported(x), model(x))
        torch.testing.assert_close(torch.export.export(fold(model), (x,)).module()(x), model(x))


def test_noise_is_not_traced(x: Tensor) -> None:
    model = kapify(nn.Sequential(nn.Conv2d(3, 9, 3)), noise_std=0.5, pool_size=1)
    with pytest.raises(RuntimeError, match="activation noise cannot be exported"):
        torch.jit.trace(model, x)


def test_saved_state_before_the_first_call(x: Tensor) -> None:
    model, other = small_cnn(), small_cnn()
    other.load_state_dict(model.state_dict())
    seed_noise(model, 11)
    load_noise_state(other, noise_state(model))
    assert torch.equal(other(x), model(x))


def test_state_of_another_model_is_refused() -> None:
    with pytest.raises(ValueError, match="the noise state is of 1 sources, the model has 0"):
        load_noise_state(nn.ReLU(), noise_state(small_cnn()))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_continue_the_same_stream_apart(x: Tensor, duplicate: Callable[[nn.Module], nn.Module]) -> None:
    model = small_cnn()
    model(x)
    other = duplicate(model)
    expected = [other(x), other(x)]
    assert all(torch.equal(model(x), logits) for logits in expected)
    with noise(other, "off"):
        assert not torch.equal(model(x), model(x))


def test_average_of_weights_keeps_its_own_noise(x: Tensor) -> None:
    model = small_cnn()
    average = torch.optim.swa_utils.AveragedModel(model)
    average.update_parameters(model)
    assert torch.equal(average(x), model(x))
    assert noise_state(average).keys() == noise_state(model).keys()


def test_ensemble_members_draw_apart(x: Tensor) -> None:
    member = small_cnn()
    ensemble = nn.ModuleList([member, kapify(nn.Sequential(copy.deepcopy(member)))])
    seed_noise(ensemble, 3)
    assert not torch.equal(ensemble[0](x), ensemble[1](x))
    assert sorted({key.split(".")[0] for key in noise_state(ensemble)}) == ["0", "1"]


def test_noise_has_no_gradient_of_its_own() -> None:
    conv = KAPConv2d(4, 12, 3, noise_std=0.5)
    x = torch.rand(2, 4, 6, 6)
    upstream = torch.rand(2, 12, 4, 4)
    noisy = torch.autograd.grad(conv(x), conv.weight, upstream)[0]
    with noise(conv, "off"):
        torch.testing.assert_close(torch.autograd.grad(conv(x), conv.weight, upstream)[0], noisy)


def test_unknown_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="must be one of fresh, fixed, off, found 'frozen'"):
        noise(small_cnn(), "frozen").__enter__()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_noise_moves_with_the_model(x: Tensor) -> None:
    model = small_cnn()
    with noise(model, "fixed"):
        cpu = model(x)
        torch.testing.assert_close(model.cuda()(x.cuda()).cpu(), cpu, rtol=1e-3, atol=1e-3)
    state = noise_state(model)
    fresh = model(x.cuda())
    load_noise_state(model, state)
    assert torch.equal(model(x.cuda()), fresh)
    assert torch.equal(copy.deepcopy(model)(x.cuda()), model(x.cuda()))


@pytest.mark.parametrize("mode", ["fresh", "fixed"])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_pass_without_numbers_has_shapes_and_draws_nothing(
    mode: str, memory_format: torch.memory_format, x: Tensor
) -> None:
    """On the meta device and with torch's fake tensors, as what weighs a model goes through it."""
    model = small_cnn()
    before, x = noise_state(model), x.contiguous(memory_format=memory_format)
    expected = copy.deepcopy(model)
    with noise(model, mode):
        with FakeTensorMode(allow_non_fake_inputs=True):
            assert model(x).shape == (4, 12, 4, 4)
        bare = copy.deepcopy(model).to("meta")
        assert bare(x.to("meta")).is_meta
        assert noise_state(bare) == noise_state(model) == before
        with noise(expected, mode):
            assert torch.equal(model(x), expected(x))


@pytest.mark.parametrize("seed", [2**63, -(2**63) - 1, 1.5, True, "7", torch.tensor(7)])
def test_a_seed_that_no_state_can_be_saved_with_is_refused(seed: object, x: Tensor) -> None:
    model = small_cnn()
    expected, before = copy.deepcopy(model)(x), noise_state(model)
    for begin in (lambda: seed_noise(model, seed), lambda: noise(model, "fresh", seed).__enter__()):
        with pytest.raises(ValueError, match="seed of noise must be a whole number of 64 bits"):
            begin()
    assert noise_state(model) == before
    assert torch.equal(model(x), expected)
    for good in (2**63 - 1, -(2**63), np.int64(3)):
        seed_noise(model, good)
        assert noise_state(model)["0.seed"] == int(good)
