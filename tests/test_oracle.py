"""A search engine: its answers, its budget, what it does not show; and one in another process, over HTTP."""

import json
import subprocess
import sys
import urllib.request

import numpy as np
import pytest
import torch
from torch import nn

from robret_lib import attacks
from robret_lib.attacks import (
    NES,
    PGD,
    SPSA,
    AutoPGD,
    Averaged,
    Gallery,
    OnlyAnswers,
    OrderAttack,
    QueryBudgetSpent,
    RandomSearch,
    RankingOracle,
    Transfer,
    ranking,
)
from robret_lib.attacks.order import short_range_ranking_correlation
from tests.small_retrieval import DEVICES, SIZE, gallery_on, seeded

OWN = torch.arange(0, SIZE, 50)


@pytest.mark.parametrize("visible", [None, 1, 7, 10_000])
@pytest.mark.parametrize("own", [OWN, None], ids=["items", "strangers"])
def test_answers_are_the_nearest_items_in_order(own, visible, models, galleries, searched):
    for distance, model in models.items():
        gallery = galleries[distance]
        lists = RankingOracle(model, gallery, visible, own=own)(searched[OWN])
        distances = torch.cdist(model(searched[OWN]).detach().double(), gallery.embeddings.double())
        if own is not None:
            distances.scatter_(1, own[:, None], torch.inf)
        shown = min(visible or SIZE, SIZE - (own is not None))
        assert lists.shape == (len(OWN), shown) and lists.dtype == torch.int64
        found = distances.gather(1, lists)
        assert torch.allclose(found, distances.sort(1).values[:, :shown], atol=1e-3)
        assert (found.diff(dim=1) >= -1e-4).all()
        assert not (lists == OWN[:, None]).any() if own is not None else (lists[:, 0] == OWN).all()


def test_every_question_counts_for_its_image(model, gallery, searched):
    engine = RankingOracle(model, gallery, 3, budget=4)
    engine(searched[:3])
    engine(searched[:5], torch.tensor([1, 1, 2, 1, 9]))
    assert engine.asked == {0: 1, 1: 4, 2: 2, 9: 1}
    with pytest.raises(QueryBudgetSpent, match="image 1 was asked for 5 times: the budget is 4 queries"):
        engine(searched[:2], torch.tensor([0, 1]))
    assert engine.asked == {0: 1, 1: 4, 2: 2, 9: 1}  # what is not answered does not count
    engine(searched[:3], torch.tensor([0, 0, 0]))
    with pytest.raises(QueryBudgetSpent):
        engine(searched[:6], torch.full((6,), 7))


@pytest.mark.parametrize("rows", [torch.tensor([0]), torch.zeros(200, 1, dtype=torch.int64), torch.tensor(0)])
def test_no_image_is_answered_that_is_not_charged(rows, model, gallery, searched):
    engine = RankingOracle(model, gallery, 3, budget=1)
    with pytest.raises(ValueError, match=r"200 images and rows of shape \(.*\): expected one number for each image"):
        engine(searched[:200], rows)
    assert not engine.asked


def test_nothing_but_positions_leaves_it(model, gallery, searched):
    engine = RankingOracle(model, gallery, 3)
    lists = engine(searched[:4].clone().requires_grad_())
    assert not lists.requires_grad and not lists.is_floating_point()
    assert {name for name in vars(engine) if not name.startswith("_")} == {"visible", "budget", "asked"}


def test_a_model_in_training_answers_as_in_service(gallery, searched):
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 16))
    engine = RankingOracle(model, gallery, 5)
    assert torch.equal(engine(searched[:4]), engine(searched[:4]))
    assert model.training


@pytest.mark.parametrize("name", ["visible", "budget"])
def test_an_engine_that_answers_nothing_is_refused(name, model, gallery):
    with pytest.raises(ValueError, match=f"{name}=0: expected a whole number of at least 1"):
        RankingOracle(model, gallery, **{name: 0})
    with pytest.raises(ValueError, match=f"{name}=0: expected a whole number of at least 1"):
        OnlyAnswers(RandomSearch(0.1), **{name: 0})


# As the only thing that a search sees


@pytest.mark.parametrize("device", DEVICES)
def test_only_answers_is_a_search_like_any_other(device, models, galleries, searched):
    model, gallery = models["N"].to(device), gallery_on(device, galleries["N"])
    only = OnlyAnswers(SPSA(0.1, 100), visible=20)
    result = attacks.run(OrderAttack(4), model, searched[OWN], gallery, only, OWN, generator=seeded())
    again = attacks.run(OrderAttack(4), model, searched[OWN], gallery, only, OWN, generator=seeded(), batch_size=3)
    model.cpu()
    assert result.passes == 100 and result.backward_passes == 0
    assert torch.equal(result.images, again.images)
    assert result.measured["tau"].mean() > result.benign["tau"].mean()
    assert (result.images - searched[OWN]).abs().max() <= 0.1 + 1e-6


def test_a_budget_below_what_the_search_asks_is_enforced(model, gallery, searched):
    only = OnlyAnswers(NES(0.1, 200), visible=5, budget=199)
    with pytest.raises(QueryBudgetSpent, match="image 0 was asked for 200 times: the budget is 199 queries"):
        attacks.run(OrderAttack(4), model, searched[:2], gallery, only, torch.arange(2))
    attacks.run(OrderAttack(4), model, searched[:2], gallery, OnlyAnswers(NES(0.1, 199), 5, 199), torch.arange(2))


def test_what_needs_more_than_answers_is_refused(model, gallery, searched):
    for search in (PGD(0.1, 0.1, 1), AutoPGD(0.1, 1), Averaged(NES(0.1), 2), Transfer(model, NES(0.1))):
        with pytest.raises(TypeError, match=f"OnlyAnswers with a {type(search).__name__}: expected a search that"):
            OnlyAnswers(search)
    only = OnlyAnswers(RandomSearch(0.1, 10))
    with pytest.raises(TypeError, match="OnlyAnswers needs a loss of lists: give attacks.run an attack whose plan has"):
        attacks.run(ranking.QueryAttack("raise"), model, searched[:2], gallery, only, torch.arange(2))
    with pytest.raises(TypeError, match="OnlyAnswers needs a loss of lists"):
        only(model, searched[:2], lambda embeddings: embeddings[:, 0])


# A service


SERVER = """
import json
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np

draws = np.random.default_rng(0)
weights, items = draws.normal(size=(64, 16)), draws.random((200, 64))

class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        images = np.array(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        shifts = (images.reshape(-1, 1, 64) - items) @ weights
        answer = json.dumps((shifts**2).sum(2).argsort(1)[:, :8].tolist()).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *arguments):
        pass

server = HTTPServer(("127.0.0.1", 0), Handler)
print(server.server_port, flush=True)
server.serve_forever()
"""


@pytest.fixture
def address():
    with subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True) as process:
        yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
        process.kill()


def test_the_same_search_asks_a_service(address):
    """The lists that it shows, and the loss of lists, are all an attacker needs; it is no program of ours."""

    def ask(images):
        with urllib.request.urlopen(address, json.dumps(images.tolist()).encode()) as answer:
            return torch.tensor(json.loads(answer.read()))

    queries = torch.rand(4, 1, 8, 8, generator=seeded(), dtype=torch.float64)
    wanted = ask(queries)[:, [3, 1, 0, 2]]
    search = SPSA(0.2, 102, step=0.05, sigma=0.05, stop_below=-0.99)
    found = search.minimize(
        queries, lambda images, rows: -short_range_ranking_correlation(ask(images), wanted[rows]), seeded()
    )
    before, after = (short_range_ranking_correlation(ask(images), wanted) for images in (queries, found))
    assert (after >= before).all() and after.mean() > before.mean()

    draws = np.random.default_rng(0)
    weights, items = torch.from_numpy(draws.normal(size=(64, 16))), torch.from_numpy(draws.random((200, 64)))
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16, bias=False)).double()
    model[1].weight.data = weights.T
    engine = RankingOracle(model, Gallery(items @ weights, "E"), 8, budget=102)
    here = search.minimize(
        queries, lambda images, rows: -short_range_ranking_correlation(engine(images, rows), wanted[rows]), seeded()
    )
    assert torch.equal(found, here)
