"""Hashing losses against numbers computed by hand, slow loops, and what their formulas promise."""

import math
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import hadamard

from robret_lib.hashing import (
    CSQ,
    DCH,
    DPH,
    DPN,
    DPSH,
    DSDH,
    Batch,
    GreedyHash,
    HashNet,
    Known,
    KnownCodes,
    OrthoHash,
    center_of_labels,
    hadamard_centers,
    random_centers,
    sliced_wasserstein,
)
from robret_lib.hashing.centers import each_once

BITS = 4
CODES = torch.tensor(
    [[0.5, -0.2, 0.8, -0.9], [-0.4, 0.6, 0.1, 0.3], [0.9, 0.7, -0.6, 0.2], [-0.8, -0.5, -0.3, 0.4]],
    dtype=torch.float64,
)
LABELS = torch.tensor([[1, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 1]])


def a_batch() -> Batch:
    return Batch(CODES[:2].atanh(), LABELS[:2], Known(CODES, LABELS))


def drawn(seed, n=6, known=10, bits=8, classes=4) -> Batch:
    """Some labels are empty, and some several."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.rand(known, bits, generator=generator, dtype=torch.float64) * 1.8 - 0.9
    labels = (torch.rand(known, classes, generator=generator) < 0.4).long()
    return Batch(codes[:n].atanh(), labels[:n], Known(codes, labels))


def pairs(batch):
    """Codes of both sides, and whether they are similar, of every pair."""
    for u, y in zip(batch.codes.tolist(), batch.labels.tolist(), strict=True):
        for v, z in zip(batch.known.codes.tolist(), batch.known.labels.tolist(), strict=True):
            yield sum(a * b for a, b in zip(u, v, strict=True)), any(a and b for a, b in zip(y, z, strict=True))


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (DPH(), 0.795628125),
        (DPSH("cgat"), 0.590912651),
        (DPSH("deephash"), 0.625067651),
        (DPSH("saat"), 17.840567651),
        (HashNet(0.1), 1.339318171),
        (HashNet(10 / BITS), 0.870702599),
        (DCH(), 2.044105889),
        (DCH(quantization=0.0), 2.043104565),
    ],
)
def test_the_worked_numbers(loss, expected):
    assert loss(a_batch()).item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(("weight", "expected"), [(1e-4, 1.095801429), (0.05, 1.113016929), (0.0, 1.095766929)])
def test_the_worked_numbers_of_csq(weight, expected):
    loss = CSQ(3, BITS, weight)
    assert loss.centers.tolist() == hadamard(BITS)[:3].tolist()
    assert loss(a_batch()).item() == pytest.approx(expected, abs=1e-9)


def test_the_worked_number_of_greedyhash():
    with_it, without = (GreedyHash(3, BITS, weight).double() for weight in (0.1, 0.0))
    without.load_state_dict(with_it.state_dict())
    assert (with_it(a_batch()) - without(a_batch())).item() == pytest.approx(0.024975, abs=1e-9)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_losses_of_pairs_are_those_of_a_loop(seed):
    batch = drawn(seed)
    found = list(pairs(batch))
    ones = sum(similar for _, similar in found)
    dph = [(product / 8 - (1 if similar else -1)) ** 2 for product, similar in found]
    likelihoods = [math.log1p(math.exp(product / 2)) - similar * product / 2 for product, similar in found]
    weights = [len(found) / (ones if similar else len(found) - ones) for _, similar in found]
    hashnet = [
        weight * (math.log1p(math.exp(0.1 * product)) - similar * 0.1 * product)
        for weight, (product, similar) in zip(weights, found, strict=True)
    ]
    uneven = (batch.codes - batch.codes.sign()).square().mean().item()
    assert DPH()(batch).item() == pytest.approx(sum(dph) / len(dph))
    assert DPSH("deephash")(batch).item() == pytest.approx(sum(likelihoods) / len(likelihoods) + 0.1 * uneven)
    assert HashNet()(batch).item() == pytest.approx(sum(hashnet) / len(hashnet))


LOSSES = {
    "dph": lambda: DPH(),
    "dpsh": lambda: DPSH(),
    "hashnet": lambda: HashNet(),
    "dch": lambda: DCH(),
    "csq": lambda: CSQ(4, 8),
    "dpn": lambda: DPN(4, 8),
    "dsdh": lambda: DSDH(10, 4, 8),
    "greedyhash": lambda: GreedyHash(4, 8),
    "orthohash": lambda: OrthoHash(4, 8),
}
of_every_loss = pytest.mark.parametrize("name", LOSSES)


@of_every_loss
def test_gradients_are_right_and_reach_the_outputs(name):
    if name == "greedyhash":
        pytest.skip("its gradient is that of another function, on purpose")
    loss, batch = LOSSES[name]().double(), drawn(3)

    def of(outputs):
        return loss(Batch(outputs, batch.labels, batch.known))

    assert torch.autograd.gradcheck(of, batch.outputs.detach().requires_grad_(True))


@of_every_loss
@pytest.mark.parametrize("labels", [0, 1])
def test_batches_of_one_kind_of_pairs_have_a_loss(name, labels):
    """All similar, or none: weights must not divide by zero, and images without labels are no NaN."""
    given = torch.full((10, 4), labels)
    batch = drawn(5)
    outputs = batch.outputs.requires_grad_(True)
    loss = LOSSES[name]().double()(Batch(outputs, given[:6], Known(batch.known.codes, given)))
    loss.backward()
    assert loss.isfinite() and outputs.grad.isfinite().all()


def test_hashnet_of_one_kind_of_pairs_is_their_plain_likelihood():
    """All of them have weight 1, since they are as many as all pairs."""
    batch = drawn(5)
    products = 0.1 * batch.codes @ batch.known.codes.T
    for similar in (0, 1):
        given = torch.full((10, 4), similar)
        found = HashNet(0.1)(Batch(batch.outputs, given[:6], Known(batch.known.codes, given)))
        expected = (products.exp().log1p() - similar * products).mean()
        assert found.item() == pytest.approx(expected.item())


@pytest.mark.parametrize("name", ["orthohash", "greedyhash"])
def test_to_a_classifier_images_without_labels_add_nothing(name):
    """Their share of the mean is zero; statistics of batches, which all images shape, aside."""
    loss, batch = LOSSES[name]().double().eval(), drawn(5)
    loss.quantization = 0.0
    labels = torch.nn.functional.one_hot(torch.arange(6) % 4, 4)
    labels[[1, 4]] = 0
    kept = labels.any(1)
    outputs = batch.outputs.detach().requires_grad_(True)
    mixed = loss(Batch(outputs, labels, batch.known))
    alone = loss(Batch(batch.outputs[kept], labels[kept], batch.known))
    assert mixed.item() == pytest.approx(alone.item() * 4 / 6)
    (gradient,) = torch.autograd.grad(mixed, outputs)
    assert not gradient[~kept].any() and gradient[kept].any(1).all()


@pytest.mark.parametrize(("classes", "bits"), [(38, 16), (80, 16), (80, 32)])
def test_csq_takes_more_classes_than_there_are_rows(classes, bits):
    """FLICKR-25K and COCO, on which SAAT's asserts; every class has a center of its own."""
    loss = CSQ(classes, bits)
    assert len(loss.centers.unique(dim=0)) == classes
    labels = torch.nn.functional.one_hot(torch.arange(classes), classes)
    outputs = (3 * loss.centers).requires_grad_(True)
    right, wrong = (loss(Batch(f, labels, Known(f, labels))) for f in (outputs, outputs.roll(1, 0)))
    assert right < 0.1 < wrong


def test_csq_gives_images_without_labels_one_fixed_code():
    loss = CSQ(4, 8)
    wanted = center_of_labels(torch.zeros(3, 4, dtype=torch.long), loss.centers, loss.undecided)
    assert torch.equal(wanted, loss.undecided.expand(3, 8)) and (loss.undecided.abs() == 1).all()
    assert torch.equal(CSQ(4, 8).undecided, loss.undecided)


def test_to_orthohash_a_lone_image_is_normalized_by_the_batches_before_it():
    """As in evaluation; the remainder of a pass may be one image, which has no spread."""
    loss, batch = OrthoHash(4, 8).double(), drawn(6)
    labels = torch.nn.functional.one_hot(torch.arange(6) % 4, 4)
    loss(Batch(batch.outputs, labels, batch.known))
    kept = {name: value.clone() for name, value in loss.state_dict().items()}
    outputs = batch.outputs[:1].detach().requires_grad_(True)
    lone = Batch(outputs, labels[:1], batch.known)
    found = loss(lone)
    found.backward()
    assert outputs.grad.any()
    assert all(torch.equal(value, kept[name]) for name, value in loss.state_dict().items())
    layer = loss.normalization
    spread = (layer.running_var + layer.eps).sqrt()
    cosines = torch.nn.functional.normalize((outputs - layer.running_mean) / spread) @ loss.centers.T
    expected = torch.nn.functional.cross_entropy(8 * (cosines - 0.2 * labels[:1]), labels[:1].double())
    assert found.item() == pytest.approx(expected.item())
    assert loss.eval()(lone).item() == pytest.approx(expected.item())


@of_every_loss
def test_large_outputs_have_a_loss(name):
    batch = drawn(6)
    outputs = (1e4 * batch.outputs).float().requires_grad_(True)
    known = Known(batch.known.codes.float().sign(), batch.known.labels)
    loss = LOSSES[name]()(Batch(outputs, batch.labels, known))
    loss.backward()
    assert loss.isfinite() and outputs.grad.isfinite().all()


@of_every_loss
def test_one_class_each_may_be_given_as_numbers(name):
    if name in ("dsdh", "orthohash"):
        pytest.skip("needs multi-hot labels, and says so")
    batch, classes = drawn(7), torch.tensor([0, 1, 2, 3, 0, 1, 2, 3, 0, 1])
    hot = torch.nn.functional.one_hot(classes, 4)
    loss = LOSSES[name]().double()
    as_numbers = loss(Batch(batch.outputs, classes[:6], Known(batch.known.codes, classes)))
    assert torch.equal(as_numbers, loss(Batch(batch.outputs, hot[:6], Known(batch.known.codes, hot))))


@pytest.mark.parametrize("name", ["dsdh", "orthohash"])
def test_who_needs_multi_hot_labels_says_so(name):
    batch = drawn(7)
    with pytest.raises(ValueError, match="expected multi-hot"):
        LOSSES[name]().double()(Batch(batch.outputs, torch.arange(6) % 4, Known(batch.known.codes, torch.arange(10))))


def test_of_csq_the_outputs_are_those_of_a_logistic_function():
    """Cross-entropy of (u + 1) / 2 with u = tanh f, by the formula."""
    loss, batch = CSQ(4, 8, quantization=0.0), drawn(8)
    wanted = center_of_labels(batch.labels, loss.centers, loss.undecided).double()
    shares, targets = (batch.codes + 1) / 2, (wanted + 1) / 2
    by_formula = -(targets * shares.log() + (1 - targets) * (1 - shares).log()).mean()
    assert loss(batch).item() == pytest.approx(by_formula.item())


@pytest.mark.parametrize(("classes", "bits"), [(5, 8), (16, 8), (20, 8), (10, 12), (38, 16), (1, 8)])
def test_centers_are_codes_far_apart(classes, bits):
    centers = hadamard_centers(classes, bits, torch.Generator().manual_seed(0))
    assert centers.shape == (classes, bits) and (centers.abs() == 1).all()
    distances = (torch.pdist(centers).square() / 4).round()
    if classes <= 2 * bits and bits & (bits - 1) == 0:
        assert set(distances.tolist()) <= {bits / 2, float(bits)}
    elif classes > 1:
        assert distances.min() > 0


@pytest.mark.parametrize(("classes", "bits"), [(9, 4), (16, 4), (8, 3), (200, 8), (3000, 16)])
@pytest.mark.parametrize("made", [CSQ, DPN, OrthoHash])
def test_as_many_classes_as_there_are_codes_have_one_each(classes, bits, made):
    """Balanced ones alone would not do: there are 6 of 4 bits, 70 of 8; and among 3,000 random ones some are equal."""
    centers = made(classes, bits).centers
    assert centers.shape == (classes, bits) and len(centers.unique(dim=0)) == classes
    assert torch.equal(made(classes, bits).centers, centers)
    if classes == 2**bits:
        assert set(map(tuple, centers.sign().tolist())) == set(product((-1.0, 1.0), repeat=bits))


@pytest.mark.parametrize("made", [hadamard_centers, CSQ, DPN, OrthoHash])
@pytest.mark.parametrize(("classes", "bits"), [(17, 4), (3, 1), (10**7, 8)])
def test_more_classes_than_codes_are_refused(made, classes, bits):
    with pytest.raises(ValueError, match=f"classes={classes}, bits={bits}: expected at most {2**bits} classes"):
        made(classes, bits)


def test_centers_that_differ_stay_as_they_are_and_draw_nothing():
    """Networks that are trained by them depend on it, to the code for undecided bits, which is drawn next."""
    generators = [torch.Generator().manual_seed(0) for _ in range(2)]
    centers = random_centers(10, 16, generators[0])
    assert torch.equal(each_once(random_centers(10, 16, generators[1]), generators[1]), centers)
    assert torch.equal(generators[0].get_state(), generators[1].get_state())
    assert torch.equal(hadamard_centers(16, 8, generators[0])[8:], -hadamard_centers(8, 8))
    assert torch.equal(generators[0].get_state(), generators[1].get_state())


def test_of_centers_that_come_twice_the_first_stays():
    centers = torch.tensor([[1.0, 1], [-1, 1], [1, 1], [-1, -1]])
    found = each_once(centers, torch.Generator().manual_seed(0))
    assert found.tolist() == [[1, 1], [-1, 1], [-1, -1], [1, -1]]


def test_random_centers_are_balanced_and_follow_the_generator():
    made = [random_centers(7, 16, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert torch.equal(made[0].sum(1), torch.zeros(7))
    assert torch.equal(made[0], made[1]) and not torch.equal(made[0], made[2])


def test_several_labels_vote_and_a_draw_is_settled_by_a_fixed_code():
    centers, undecided = torch.tensor([[1.0, 1, -1], [1, -1, -1], [-1, -1, 1]]), torch.tensor([-1.0, 1, 1])
    labels = torch.tensor([[1, 0, 0], [1, 1, 0], [1, 1, 1], [0, 0, 0]])
    expected = [[1, 1, -1], [1, 1, -1], [1, -1, -1], [-1, 1, 1]]
    assert center_of_labels(labels, centers, undecided).tolist() == expected


def test_of_greedyhash_the_classifier_sees_codes_and_the_gradient_passes_the_sign():
    loss, batch = GreedyHash(4, 8, quantization=0.0).double(), drawn(9)
    codes = batch.codes.detach().requires_grad_(True)
    batch.__dict__["codes"] = codes
    batch.labels[:, 0] |= ~batch.labels.any(1)
    loss(batch).backward()
    logits = (codes.detach().sign() @ loss.classifier.weight.T).detach().requires_grad_(True)
    torch.nn.functional.cross_entropy(logits, batch.labels.argmax(1)).backward()
    torch.testing.assert_close(codes.grad, logits.grad @ loss.classifier.weight.detach())


@pytest.mark.parametrize(("learned", "expected"), [(True, 1), (False, 0)])
def test_whether_the_classifier_of_greedyhash_learns(learned, expected):
    assert sum(weight.requires_grad for weight in GreedyHash(4, 8, learned=learned).parameters()) == expected


def test_codes_of_dsdh_are_fitted_bit_by_bit():
    """No single bit of any image, turned over, fits better."""
    generator = torch.Generator().manual_seed(0)
    loss = DSDH(12, 3, 6).double()
    known = Known(
        torch.rand(12, 6, generator=generator, dtype=torch.float64) * 2 - 1,
        torch.nn.functional.one_hot(torch.arange(12) % 3, 3),
    )
    loss.between_epochs(known)

    def misfit(binary):
        labels = known.labels.T.double()
        classified = (labels - loss.classifier.T @ binary).square().sum()
        return loss.mu * classified + loss.eta * (binary - known.codes.T).square().sum()

    fitted = misfit(loss.binary)
    for bit in range(6):
        for image in range(12):
            turned = loss.binary.clone()
            turned[bit, image] *= -1
            assert misfit(turned) >= fitted - 1e-9
    gradient = 2 * loss.mu * loss.binary @ (loss.binary.T @ loss.classifier - known.labels.double())
    assert (gradient + 2 * loss.nu * loss.classifier).abs().max() < 60  # codes moved once after the last fit of W


@pytest.mark.parametrize(
    ("codes", "labels", "message"),
    [
        (torch.zeros(9, 6), torch.ones(9, 3), "9 known codes of 6 bits: expected 12 of 6; .*unseen='zeros'"),
        (torch.zeros(12, 5), torch.ones(12, 3), "12 known codes of 5 bits: expected 12 of 6"),
        (torch.zeros(12, 6), torch.ones(12, 4), r"labels of shape \(12, 4\): expected 3 classes"),
        (torch.zeros(12, 6), torch.arange(12), "labels 0 to 11: expected 3 classes"),
    ],
)
def test_dsdh_is_fitted_to_the_whole_training_set_only(codes, labels, message):
    loss = DSDH(12, 3, 6)
    with pytest.raises(ValueError, match=message):
        loss.between_epochs(Known(codes, labels))
    assert not loss.classifier.any() and (loss.binary == 1).all()


def test_dsdh_takes_images_not_seen_yet_as_zeros_without_labels():
    """The others are fitted, and the same as with class numbers, once all have been seen."""
    labels = torch.nn.functional.one_hot(torch.arange(12) % 3, 3)
    known = KnownCodes(labels, 6, "zeros")
    codes = torch.rand(12, 6, generator=torch.Generator().manual_seed(0)) * 2 - 1
    known.with_batch(torch.arange(8), codes[:8])
    partly, whole, by_number = (DSDH(12, 3, 6) for _ in range(3))
    partly.between_epochs(known.all())
    assert torch.equal(partly.binary[:, :8].T, codes[:8].sign())
    assert partly.classifier.isfinite().all() and partly.classifier.any()
    known.fill(codes)
    whole.between_epochs(known.all())
    by_number.between_epochs(Known(codes, torch.arange(12) % 3))
    assert torch.equal(whole.binary, by_number.binary) and torch.equal(whole.classifier, by_number.classifier)


def test_only_the_first_term_of_dsdh_has_a_gradient():
    loss, batch = DSDH(10, 4, 8).double(), drawn(3)
    outputs = [batch.outputs.detach().requires_grad_(True) for _ in range(2)]
    loss(Batch(outputs[0], batch.labels, batch.known)).backward()
    loss.between_epochs(batch.known)
    loss(Batch(outputs[1], batch.labels, batch.known)).backward()
    assert torch.equal(outputs[0].grad, outputs[1].grad)


def test_the_quantizer_is_zero_for_fair_coins_and_grows_with_bias():
    coins = torch.tensor([1.0, -1.0]).repeat(500)[:, None].expand(-1, 4)
    even = sliced_wasserstein(coins, torch.Generator().manual_seed(0))
    assert even < 0.2 < 1.5 < sliced_wasserstein(torch.ones(1000, 4), torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DPSH("prosgan"), "source='prosgan': expected one of"),
        (lambda: HashNet(0.0), "alpha=0.0: expected a finite number above 0"),
        (lambda: DCH(gamma=-1.0), "gamma=-1.0"),
        (lambda: CSQ(0, 8), "classes=0: expected a whole number of at least 1"),
        (lambda: CSQ(3, 0), "bits=0"),
        (lambda: CSQ(3, 8.0), "bits=8.0: expected a whole number"),
        (lambda: CSQ(3, 8, -1.0), "quantization=-1.0"),
        (lambda: DPN(0, 4), "classes=0"),
        (lambda: DPN(3, 0), "bits=0"),
        (lambda: random_centers(3, True), "bits=True"),
        (lambda: GreedyHash(0, 4), "classes=0"),
        (lambda: GreedyHash(3, 0), "bits=0"),
        (lambda: OrthoHash(0, 4), "classes=0"),
        (lambda: OrthoHash(3, 0), "bits=0"),
        (lambda: DSDH(0, 3, 8), "size=0"),
        (lambda: DSDH(4, 0, 8), "classes=0"),
        (lambda: DSDH(4, 3, 0), "bits=0"),
        (lambda: DPN(3, 8, margin=0.0), "margin=0.0"),
        (lambda: DSDH(4, 3, 8, eta=float("nan")), "eta=nan"),
    ],
)
def test_impossible_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
