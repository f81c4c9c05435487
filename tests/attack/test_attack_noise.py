"""Averages over noise: the value, the gradient and the memory; noise that does no harm scores what it should."""

import random
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kapdist.attack.averaged import AveragedModel
from kapdist.attack.chunk import attack_chunk
from kapdist.attack.classifier import check_batches_of_noise, noise_differs_by_row
from kapdist.attack.counted import CountedModel
from kapdist.attack.rescore import cast_votes
from kapdist.config import AttackConfig
from kapdist.corruptions.plan import notes_on
from kapdist.kap import KAPConv2d, noise
from kapdist.models.dropout import NoisyDropout
from kapdist.models.ensemble import Ensemble
from kapdist.records.attack_plan import AttackPlan
from kapdist.rng import derive_seed
from kapdist.sanity.run import describe
from kapdist.statistics.intervals import resampled

MakePlan = Callable[..., AttackPlan]
CPU = torch.device("cpu")


def noisy_networks() -> Iterator[tuple[str, nn.Module]]:
    torch.manual_seed(0)
    kap = KAPConv2d(3, 4, 3, stride=3, pool_size=3, layout="line", noise_std=0.3)
    yield "kap", nn.Sequential(kap, nn.Tanh(), nn.Flatten(), nn.Linear(16, 5)).eval()
    for kind in ("global", "python", "numpy"):
        yield kind, GlobalNoise(nn.Sequential(nn.Flatten(), nn.Linear(192, 5)).eval(), kind)
    yield "dropout", nn.Sequential(NoisyDropout(0.4), nn.Flatten(), nn.Linear(192, 5)).eval()
    yield (
        "member",
        Ensemble([nn.Sequential(nn.Flatten(), nn.Linear(192, 5)) for _ in range(3)], random_member=True).eval(),
    )


class GlobalNoise(nn.Module):
    """Dropout that stays on: its randomness is torch's global one, Python's or NumPy's."""

    def __init__(self, network: nn.Module, kind: str = "global") -> None:
        super().__init__()
        self.network, self.kind = network, kind

    def forward(self, images: Tensor) -> Tensor:
        if self.kind == "global":
            return self.network(F.dropout(images, 0.4, training=True))
        shape = images.shape
        numbers = (
            np.random.rand(*shape) if self.kind == "numpy" else [random.random() for _ in range(shape.numel())]
        )
        return self.network(images * (torch.as_tensor(numbers).view(shape) > 0.4))


def averaged(network: nn.Module, images_per_pass: int, num_draws: int = 6, together: bool = True) -> AveragedModel:
    return AveragedModel(CountedModel(network, CPU, 0), num_draws, images_per_pass, 11, together)


@pytest.mark.parametrize("kind", ["kap", "global", "python", "numpy", "dropout", "member"])
@pytest.mark.parametrize("images_per_pass", [100, 10, 3])
def test_the_average_and_its_gradient_are_those_of_the_draws_one_by_one(kind: str, images_per_pass: int) -> None:
    """A float64 reference over the very draws; the second call draws anew, a new model with the seed the same."""
    network = dict(noisy_networks())[kind].requires_grad_(False)
    images = torch.rand(5, 3, 8, 8, requires_grad=True)
    model = averaged(network, images_per_pass)
    logits = model(images)
    direction = torch.randn(5, 5)
    (gradient,) = torch.autograd.grad((logits * direction).sum(), images)
    draws = [
        (part[1], model.log_probabilities(images[part[1]], 0, part).double()) for part in model.parts(len(images))
    ]
    chances = torch.zeros(5, 5, dtype=torch.float64)
    for rows, logs in draws:
        chances = chances.index_add(0, torch.arange(5)[rows], logs.exp().sum(0) / 6)
    (expected,) = torch.autograd.grad((chances.log() * direction).sum(), images)
    torch.testing.assert_close(logits.double(), chances.log(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)
    assert not torch.equal(model(images), logits)
    torch.manual_seed(77)
    random.seed(77)
    np.random.seed(77)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    assert torch.equal(averaged(network, images_per_pass)(images), logits)
    assert before == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())


def test_a_random_member_under_many_draws_is_the_mean_of_all_probabilities() -> None:
    member = dict(noisy_networks())["member"]
    mean = Ensemble(list(member.members), "probabilities").eval()
    images = torch.rand(4, 3, 8, 8)
    chances = torch.stack([one(images).softmax(1) for one in mean.members])
    torch.testing.assert_close(mean(images).exp(), chances.mean(0))
    found = averaged(member, 10**4, num_draws=2000)(images).exp()
    # The mean of 2000 draws of a member: its error is chances' deviation over the root of 2000, of which 5 are far.
    assert ((found - chances.mean(0)).abs() < 5 * chances.std(0, correction=0) / 2000**0.5 + 1e-6).all()


def test_an_attack_breaks_a_random_member_where_it_breaks_the_mean(make_plan: MakePlan) -> None:
    """Linear members that hardly disagree: how far the mean is from its edge decides which images fall."""
    generator = torch.Generator().manual_seed(0)
    common = torch.randn(192, generator=generator)
    members = [nn.Sequential(nn.Flatten(), nn.Linear(192, 3)) for _ in range(3)]
    for member in members:
        own = common + 0.1 * torch.randn(192, generator=generator)
        with torch.no_grad():
            member[1].weight.copy_(torch.stack([own, -own, torch.zeros(192)]))
            member[1].bias.copy_(-0.5 * member[1].weight.sum(1))
    model = Ensemble(members, "probabilities", random_member=True).eval().requires_grad_(False)
    images = 0.5 + 0.02 * torch.randn(16, 3, 8, 8, generator=generator)
    labels = (((images - 0.5).flatten(1) @ common) < 0).long()
    # Linf eps takes eps times the sum of |weights| off the score; half an eps around that is left open.
    score, reach = ((images - 0.5).flatten(1) @ common).abs(), common.abs().sum()
    eps = float(score.median() / reach)
    plan = make_plan("Linf", eps, ("apgd-ce",), eot=10, noise="fresh", images_per_pass=10**4, num_classes=3)
    outcome = attack_chunk(model, images, labels, plan, 0)
    fallen = outcome.attacks[0].broke | (outcome.clean_prediction != labels)
    near, far = score < 0.5 * eps * reach, score > 1.5 * eps * reach
    assert near.any()
    assert far.any()
    assert fallen[near].all()
    assert not fallen[far].any()


def test_noise_that_is_off_is_said_of_every_kind(make_plan: MakePlan) -> None:
    config = AttackConfig(name="aa", noise="off")
    plan = make_plan("Linf", 0.1, ("square",))
    for network, expected in (
        ({"members": 3, "random_member": True}, "off is random member one of 3: this says nothing about the model"),
        ({"dropout": 0.5, "dropout_draws": "always"}, "off is dropout 1d, p = 0.5: this says nothing about"),
        ({"dropout": 0.5}, None),
    ):
        parts = {"model": network, "kap": {"pool_size": 3}}
        known = plan.model.model_copy(update={"factory": None, "architecture": parts})
        subject = plan.model_copy(update={"model": known})
        for notes in (describe(subject, config)["notes"], notes_on(subject, config)):
            assert any(note.startswith(expected or "off is") for note in notes) == (expected is not None)


def test_no_pass_has_more_rows_than_allowed_and_the_second_forward_is_counted() -> None:
    seen: list[int] = []
    network = nn.Sequential(nn.Flatten(), nn.Linear(192, 5))
    network.register_forward_hook(lambda module, inputs, logits: seen.append(len(logits)))
    model = averaged(network, 7)
    model(torch.rand(3, 3, 8, 8, requires_grad=True)).sum().backward()
    assert seen == 2 * [6, 6, 6]
    assert (model.model.forwards, model.model.backwards) == (36, 18)
    seen.clear()
    averaged(network, 7, together=False)(torch.rand(9, 3, 8, 8))
    assert seen == 6 * [7] + 6 * [2]


class OneSizeForAll(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)[:, :5] * (1 + torch.rand(()))


class OneMemberForAll(nn.Module):
    """Of so few members that two passes are often of the same one."""

    def __init__(self, num_members: int) -> None:
        super().__init__()
        self.members = nn.ModuleList(nn.Sequential(nn.Flatten(), nn.Linear(192, 5)) for _ in range(num_members))

    def forward(self, images: Tensor) -> Tensor:
        return self.members[int(torch.randint(len(self.members), ()))](images)


class OneSizeAndNoise(nn.Module):
    """A size for the whole batch, and noise of each row on it."""

    def forward(self, images: Tensor) -> Tensor:
        return (images * (1 + torch.rand(())) + 0.05 * torch.randn_like(images)).flatten(1)[:, :5]


class Votes(nn.Module):
    """Says one of two classes by chance, and nothing in between."""

    def forward(self, images: Tensor) -> Tensor:
        said = (torch.rand(len(images)) < 0.5).long()
        return 10 * F.one_hot(said, 4).float() + 0 * images.flatten(1)[:, :1]


def test_no_image_at_all_is_asked_about_too(make_plan: MakePlan) -> None:
    """As many draws for either class are a margin of 0, of which Square leaves nothing to ask about."""
    for _, network in noisy_networks():
        for images in (torch.zeros(0, 3, 8, 8), torch.zeros(0, 3, 8, 8, requires_grad=True)):
            assert averaged(network, 7)(images).shape == (0, 5)
    images, labels = torch.rand(1, 3, 8, 8), torch.tensor([0])
    for seed in range(30):  # two of which begin with a tie
        plan = make_plan("Linf", 0.1, ("square",), noise="fresh", num_classes=4, eot=20, rescore=0, seed=seed)
        assert attack_chunk(Votes().eval(), images, labels, plan, 0).adversarial.shape == images.shape


class SharedAndOwn(nn.Module):
    """Normal noise on the logits: of each row, and of the whole batch a share of that deviation."""

    def __init__(self, shared: float) -> None:
        super().__init__()
        self.shared = shared

    def forward(self, images: Tensor) -> Tensor:
        logits = images.flatten(1)[:, :5]
        return logits + self.shared * torch.randn(1, 5) + torch.randn_like(logits)


class Seldom(nn.Module):
    """Hardly ever noisy, each row for itself."""

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)[:, :5] * (1 + (torch.rand(len(images), 1) < 0.03))


def test_noise_that_a_batch_shares_is_told_from_noise_of_each_row() -> None:
    for seed in range(5):
        torch.manual_seed(seed)
        for shared in (OneSizeForAll(), OneSizeAndNoise(), OneMemberForAll(2), OneMemberForAll(10)):
            assert not noise_differs_by_row(shared, 8)
            assert not noise_differs_by_row(shared, 8, most_rows=1)
        assert not noise_differs_by_row(SharedAndOwn(0.5), 8)  # a quarter of the variance that each row has alone
        assert noise_differs_by_row(SharedAndOwn(0), 8)
        assert noise_differs_by_row(Seldom(), 8)
        assert noise_differs_by_row(nn.Sequential(nn.Flatten(), nn.Linear(192, 5)), 8)  # of no noise at all
    for _, network in noisy_networks():
        assert noise_differs_by_row(network, 8)


def test_noise_alone_makes_no_image_depend_on_its_batch() -> None:
    for seed in range(10):
        torch.manual_seed(seed)
        for shared in (OneSizeForAll(), OneSizeAndNoise(), OneMemberForAll(2), Seldom()):
            check_batches_of_noise(shared, "here", 8)
    for _, network in noisy_networks():
        check_batches_of_noise(network, "here", 8)


def test_draws_of_one_member_for_all_are_as_many_as_asked_for(make_plan: MakePlan) -> None:
    """Two members that disagree: of 400 draws, 100 to a pass, as many votes as of a coin tossed 400 times."""
    network = OneMemberForAll(2)
    for number, member in enumerate(network.members):
        member[1].weight.data.zero_()
        member[1].bias.data = 10.0 * torch.nn.functional.one_hot(torch.tensor(number), 5).float()
    together = noise_differs_by_row(network, 8)
    plan = make_plan("Linf", 0.1, ("square",), noise="fresh", num_classes=5, rescore=400, images_per_pass=100)
    votes = []
    for seed in range(40):
        subject = plan.model_copy(update={"draws_together": together})
        counts = cast_votes(CountedModel(network, CPU, 0), torch.rand(1, 3, 8, 8), subject, seed).counts
        votes.append(counts[0, 0].item())
    # A deviation of 10; of four tosses it were 100.
    assert 5 < np.std(votes) < 20


class Harmless(nn.Module):
    """Right with probability p whatever the image looks like: another class's logit wins by chance alone."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, images: Tensor) -> Tensor:
        # The class is written in the image's first pixels, far beyond the reach of eps.
        logits = 20 * images[:, 0, 0, :4]
        wrong = torch.rand(len(images)) >= self.p
        return torch.where(wrong[:, None], -logits, logits)


@pytest.mark.parametrize("p", [0.90, 0.97])
def test_harmless_noise_scores_p_where_the_library_scores_a_power_of_it(make_plan: MakePlan, p: float) -> None:
    num_images = 160
    labels = torch.arange(num_images) % 4
    images = torch.full((num_images, 3, 8, 8), 0.2)
    images[torch.arange(num_images), 0, 0, labels] = 0.8
    model = Harmless(p).eval()
    fresh = {"noise": "fresh", "rescore": 100, "images_per_pass": 10**4, "num_classes": 4}
    plan = make_plan("Linf", 0.05, ("apgd-ce",), eot=20, **fresh)
    outcome = attack_chunk(model, images, labels, plan, 0)
    assert outcome.clean_votes is not None
    assert outcome.adversarial_votes is not None
    assert not any(attack.broke.any() for attack in outcome.attacks)  # averaged, it is never wrong
    for votes in (outcome.clean_votes, outcome.adversarial_votes):
        assert (votes.majority == labels).all()
        share = resampled(votes.correct(labels).numpy(), 100, 0, "test")
        assert share.low < share.bootstrap_low < p < share.bootstrap_high < share.high
    # The library as it is, on the same images: every attack and the clean pass decide by one draw each.
    stock = attack_chunk(model, images, labels, make_plan("Linf", 0.05, version="rand", **fresh), 0)
    robust = (stock.clean_prediction == labels) & ~torch.stack([attack.broke for attack in stock.attacks]).any(0)
    assert robust.float().mean().item() == pytest.approx(p**3, abs=0.08)


def test_the_hardest_point_seen_is_what_is_scored_of_an_unbroken_image(make_plan: MakePlan) -> None:
    """Noise on the logits of a linear model: the accuracy of a draw at the worst point of the ball is known."""
    weight, eps = torch.randn(192, generator=torch.Generator().manual_seed(0)), 0.01
    images, labels = torch.full((16, 3, 8, 8), 0.5), torch.zeros(16, dtype=torch.long)
    reach = eps * weight.abs().sum()

    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            score = (x - 0.5).flatten(1) @ weight / reach + 2.2  # 1.2 at the worst point
            noisy = score + 1.5 * torch.randn(len(x))
            return torch.stack([noisy, torch.zeros(len(x)), torch.full((len(x),), -99.0)], 1)

    draws = {"noise": "fresh", "eot": 20, "rescore": 400, "images_per_pass": 10**4, "num_classes": 3}
    plan = make_plan("Linf", eps, ("apgd-ce",), **draws)
    outcome = attack_chunk(Noisy(), images, labels, plan, 0)
    assert not outcome.attacks[0].broke.any()
    worst = torch.special.ndtr(torch.tensor(1.2 / 1.5)).item()
    scored = outcome.adversarial_votes.correct(labels).double().mean().item() / 400
    clean = outcome.clean_votes.correct(labels).double().mean().item() / 400
    assert scored == pytest.approx(worst, abs=0.02)
    assert clean == pytest.approx(torch.special.ndtr(torch.tensor(2.2 / 1.5)).item(), abs=0.02)


def test_a_noisy_chunk_is_a_function_of_its_arguments(make_plan: MakePlan) -> None:
    network = dict(noisy_networks())["kap"].requires_grad_(False)
    images, labels = torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 2, 3])
    with noise(network, "off"):
        labels[:3] = network(images[:3]).argmax(1)
    plan = make_plan("Linf", 0.1, ("apgd-ce",), noise="fresh", eot=5, rescore=7, images_per_pass=12, num_classes=5)
    runs = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        runs.append(attack_chunk(network, images, labels, plan, 3))
        attack_chunk(network, images[:1], labels[:1], plan, 4)
    first, second = runs
    assert torch.equal(first.adversarial, second.adversarial)
    assert torch.equal(first.clean_votes.counts, second.clean_votes.counts)
    assert torch.equal(first.adversarial_votes.counts, second.adversarial_votes.counts)
    assert first.rescore_forwards == 2 * 4 * 7


def test_the_bootstrap_has_the_width_of_the_mean() -> None:
    successes = np.random.default_rng(0).binomial(10, 0.6, size=500)
    share = resampled(successes, 10, derive_seed(0, "x"), "test")
    half = 1.96 * (successes / 10).std() / 500**0.5
    assert share.value == pytest.approx(successes.mean() / 10)
    assert (share.bootstrap_high - share.bootstrap_low) / 2 == pytest.approx(half, rel=0.1)
    assert share == resampled(successes, 10, derive_seed(0, "x"), "test")
