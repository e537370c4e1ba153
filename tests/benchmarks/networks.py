"""The networks, images and losses that the tables of this folder are measured on."""

import torch

from robret_lib import attacks, data, models, recipes
from robret_lib.attacks import embedding, ranking

ATTACKS = {
    "CA+": ranking.CandidateAttack("raise"),
    "CA-": ranking.CandidateAttack("lower"),
    "QA+": ranking.QueryAttack("raise"),
    "QA-": ranking.QueryAttack("lower"),
    "ES": embedding.EmbeddingShift(),
    "hard margin": embedding.Margin(temperature=0),
    "soft margin": embedding.Margin(),
}
GREEDY = {
    "TMA": embedding.TargetedMismatch(),
    "LTM": embedding.LearningToMisrank(),
    "GTM": embedding.GreedyTop1Misrank(),
    "GTT": embedding.GreedyTop1Translocation(),
}
SPQA = {
    "SPQA+": ranking.SemanticsPreservingQueryAttack("raise"),
    "SPQA-": ranking.SemanticsPreservingQueryAttack("lower"),
}


def network(name: str) -> tuple[models.EmbeddingModel, attacks.Gallery]:
    """ "none N", "none E", "none C" (no defense, by distance) or "ACT N", at quick scale; and its labeled gallery."""
    dataset = data.load("fashion-mnist", "quick")
    defense, distance = name.split()
    recipe = recipes.fashion_mnist("quick", defense=None if defense == "none" else defense.lower(), distance=distance)
    model = recipes.trained(recipe, dataset, torch.device("cpu")).model
    return model, attacks.Gallery.of(model, dataset.gallery.images, dataset.gallery.labels)


def attacked(
    attack: attacks.Attack,
    model: models.EmbeddingModel,
    gallery: attacks.Gallery,
    search: attacks.Search,
    n: int,
) -> attacks.Result:
    """The first n gallery images as queries, or as candidates; the same targets in every call."""
    own, generator = torch.arange(n), torch.Generator().manual_seed(0)
    return attacks.run(attack, model, gallery.images[own], gallery, search, own, generator=generator)


def mean_loss(
    attack: attacks.Attack, model: models.EmbeddingModel, gallery: attacks.Gallery, result: attacks.Result
) -> float:
    """What the search was to minimize, at its result."""
    own = torch.arange(len(result.images))
    benign = attacks.Benign(gallery, gallery.embeddings[own], own, gallery.labels[own])
    return attack.plan(benign, result.targets).loss(models.embed(model, result.images)).mean().item()
