"""An adversarially trained network, for tests and benchmarks that judge an attack by a network which resists."""

import hashlib
import inspect

import torch
from torch import Tensor, nn

from robret_lib import mining, models, training
from robret_lib.attacks import PGD
from robret_lib.data import RetrievalData, data_root
from robret_lib.distances import pairwise_distance, row_distance
from robret_lib.files import one_at_a_time
from robret_lib.objectives import triplet_loss


class AntiCollapseTriplets(nn.Module):
    """ACT (Zhou et al., "Adversarial Attack and Defense in Deep Ranking", 2024): pull p and n together, train on that.

    For every triplet (a, p, n) the attack minimizes d(p~, n~) over both; the loss is that of (a, p~, n~).
    """

    def __init__(self, attack: PGD) -> None:
        super().__init__()
        self.attack = attack

    def forward(self, model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        with torch.no_grad(), models.evaluation_mode(model):
            benign = model(images)
        a, p, n = mining.random(pairwise_distance(benign, benign), labels, 0.2, generator)
        perturbed = self.attack(model, images[torch.cat([p, n])], _distance_of_halves)
        anchors, others = model(images[a]), model(perturbed)
        return triplet_loss(anchors, *others.chunk(2), 0.2).mean()


def _distance_of_halves(embeddings: Tensor) -> Tensor:
    return row_distance(*embeddings.chunk(2), offset=1e-6).repeat(2)


def resisting_network(data: RetrievalData) -> models.EmbeddingModel:
    """C2F2 with half the channels, trained with ACT for 77/255; trained once and kept in the data folder."""
    torch.manual_seed(0)
    model = models.build("c2f2_half", embedding_dim=128)
    objective, schedule = AntiCollapseTriplets(PGD(77 / 255, 12 / 255, steps=8)), training.Schedule(steps=400, pairs=64)
    sources = "".join(map(inspect.getsource, (training, AntiCollapseTriplets)))
    name = hashlib.sha256(f"{sources} {schedule} {objective.attack} {torch.__version__}".encode()).hexdigest()[:16]
    checkpoint = data_root() / "models" / f"tested-{name}.checkpoint"
    with one_at_a_time(checkpoint.with_suffix(".lock")):
        training.train(model, data.train, objective, schedule, checkpoint)
    return model.eval()
