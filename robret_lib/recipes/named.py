"""The recipes of the chapters and of the published tables, by data set."""

from dataclasses import replace

from robret_lib.attacks.attack import check_mode
from robret_lib.data import RetrievalData, center_cropped, load, mixed
from robret_lib.recipes.recipe import OF_A_MODEL, READ_BY, DefenseName, Recipe, Whitened

GENERATION = 3
"""Raise it, and with it train all full-scale models again, where an edit of the code changes their weights."""

FASHION_MNIST = {
    "quick": Recipe("c2f2_half", embedding_dim=128, steps=400, pairs=64),
    # RobRank `rc2f2`: 8 passes over 60,000 pairs
    "full": Recipe("c2f2", embedding_dim=512, steps=8 * 469, pairs=128, generation=GENERATION),
}

INNER_ATTACK = {
    "quick": {"eps": 77 / 255, "inner_step": 12 / 255, "inner_steps": 8},
    "full": {"eps": 77 / 255, "inner_step": 3 / 255, "inner_steps": 32},  # RobRank `rc2f2p`
}
"""Of the defenses of Fashion-MNIST. In eight steps of 12/255 an image can cross the ball as it can in 32 of 3/255."""

SAMPLERS: dict[DefenseName, str] = {"panum": "distance", "hm": "softhard"}
"""Of the defenses that are published with another sampler than the random one."""

KEPT_NEIGHBORHOOD = {"drawn_radius": True, "inner_steps": 7}
"""Of the neighborhood defense, whose steps are a quarter of the radius. With three of half of it, which leave time for
more training, a network learns to fool such short attacks (tests/benchmarks/neighborhood_tries.md)."""

STAIRS = {
    "quick": {"inner_step": 20 / 255},
    "full": {"inner_step": 77 / 8 / 255, "inner_steps": 16},
}
"""Of CA-TRIDE, published with 16 steps of an eighth of the radius. Eight of 20/255 cross the ball as well."""

WATCHED_EPS = 16 / 255
"""Where robust recall is watched while a defense of Fashion-MNIST trains: most published defenses differ there."""

OFFICIAL = {
    # RobRank `rres18`: 75 passes over pairs in two processes of 56 each; the learning rate is that of its code
    name: Recipe(
        "resnet18",
        embedding_dim=512,
        steps=75 * steps_per_pass,
        pairs=112,
        lr=1e-5,
        weight_decay=4e-4,
        generation=GENERATION,
        pretrained=True,
        crop=224,
    )
    for name, steps_per_pass in {"cub": 53, "cars": 72, "sop": 532}.items()
}
"""The undefended networks of the published tables of color photographs, by data set.

Images come as squares of 256 pixels, 8/7 of the crops that are seen. In one process, batches are as large as in the two
processes of the published runs, and triplets are drawn from all of a batch.
"""

OF_CA_TRIDE = {
    name: {"pairs": 56, "steps": 75 * steps_per_pass, "inner_steps": 16, "sharpness": sharpness}
    for name, steps_per_pass, sharpness in (("cub", 105, 10.0), ("cars", 144, 9.5), ("sop", 1064, 2.0))
}
"""Of CA-TRIDE for them: published in one process, with 16 inner steps and a lambda for each set."""

OFFICIAL_ATTACK = {"eps": 8 / 255, "inner_step": 1 / 255, "inner_steps": 32}
"""Of the defenses of color photographs (RobRank `rres18p`; the paper of HM has 8 steps by default)."""

OFFICIAL_PANUM = {"eps": 0.01, "inner_step": 0.004, "inner_steps": 5}
"""Of Panum's for them (the public code of that work, whose network is a ResNet-50 of 128 dimensions without
normalization of pixels; here it is that of the others)."""

TUNED = Recipe(
    "efficientnet_lite0",
    embedding_dim=128,
    steps=400,
    pairs=28,
    lr=1e-4,
    weight_decay=4e-4,
    generation=GENERATION,
    pretrained=True,
    crop=56,
)
"""A small network for small photographs: squares of 64 pixels, cropped to 56."""

TUNED_ATTACK = {"eps": 8 / 255, "inner_step": 2 / 255, "inner_steps": 8, "watched_eps": 2 / 255}

PHOTOGRAPHS = Whitened("efficientnet_lite0", embedding_dim=128)


def fashion_mnist(scale: str, **changes: object) -> Recipe:
    """The chapters' recipe for Fashion-MNIST at "quick" or "full" scale, with the named fields changed.

    With a ``defense`` it has the inner attack of its scale, and whatever else the defense needs: "fare" an origin,
    which is the undefended model of the same backbone, embedding, distance and seed.

    Raises:
        ValueError: Another scale.
    """
    if scale not in FASHION_MNIST:
        raise ValueError(f"scale={scale!r}: expected one of {tuple(FASHION_MNIST)}")
    attack = INNER_ATTACK[scale] | {"watched_eps": WATCHED_EPS}
    if changes.get("defense") == "ca_tride":
        attack |= STAIRS[scale]
    return _defended(FASHION_MNIST[scale], attack, changes)


def official(name: str, **changes: object) -> Recipe:
    """The recipe of the published tables for "cub", "cars" or "sop", with the named fields changed.

    With a ``defense`` it has that of RobRank as its inner attack, CA-TRIDE and Panum's their own, and whatever else the
    defense needs. FARE and the kept neighborhood are not published for these sets.

    Raises:
        ValueError: Another name.
    """
    if name not in OFFICIAL:
        raise ValueError(f"name={name!r}: expected one of {tuple(OFFICIAL)}")
    attack = OFFICIAL_ATTACK | {"watched_eps": OFFICIAL_ATTACK["eps"]}
    attack |= {"ca_tride": OF_CA_TRIDE[name], "panum": OFFICIAL_PANUM}.get(changes.get("defense"), {})
    return _defended(OFFICIAL[name], attack, changes)


def _defended(undefended: Recipe, attack: dict[str, object], changes: dict[str, object]) -> Recipe:
    """The undefended recipe with changes; with a defense among them also its sampler, attack and origin.

    With another radius the steps of the attack change alike, unless they are among the changes.

    A defense that has but one mode is trained in it, whichever of the two is asked for.
    """
    defense = changes.get("defense")
    if defense is None:
        return replace(undefended, **changes)
    given = {"sampler": SAMPLERS[defense]} if defense in SAMPLERS else {}
    eps = changes.get("eps", attack["eps"])
    given["inner_step"] = attack["inner_step"] * (eps / attack["eps"])  # the same share of another radius
    if defense == "neighborhood":
        given |= KEPT_NEIGHBORHOOD | {"inner_step": eps / 4}
    check_mode(changes.get("mode", "fixed"))
    if defense not in READ_BY["mode"]:
        changes = changes | {"mode": "fixed"}
    if defense == "fare" and "origin" not in changes:
        shared = {name: changes[name] for name in (*OF_A_MODEL, "seed") if name in changes}
        given["origin"] = replace(undefended, **shared)
    return replace(undefended, **(attack | given | changes))


def tuned_photographs(**changes: object) -> Recipe:
    """The recipe for a packed set of photographs, at a size that one can train at home, with the named fields changed.

    With a ``defense`` it has an inner attack of eight steps at 8/255, and whatever else the defense needs.
    """
    return _defended(TUNED, TUNED_ATTACK, changes)


def for_data(name: str, scale: str, **changes: object) -> Recipe:
    """The recipe for a data set, with the named fields changed.

    Args:
        name: "fashion-mnist" takes `fashion_mnist`; "cub", "cars" and "sop" take `official`, at scale "full"; anything
            else is a packed set of photographs (`data.load`), and takes `tuned_photographs`.
        scale: "quick" or "full".
        changes: Fields of `Recipe`. A defense that has but one mode is trained in it, whichever is asked for, so that
            one mode can be asked of several defenses.

    Raises:
        ValueError: One of the official sets at another scale.
    """
    if name == "fashion-mnist":
        return fashion_mnist(scale, **changes)
    if name not in OFFICIAL:
        return tuned_photographs(**changes)
    if scale != "full":
        raise ValueError(f'{name} at scale {scale!r}: expected scale="full"')
    return official(name, **changes)


def data_of(name: str, scale: str) -> RetrievalData:
    """What the recipe of `for_data` trains and is judged on; photographs are searched in center crops, mixed."""
    if name == "fashion-mnist":
        return load(name, scale)
    recipe = OFFICIAL.get(name, TUNED)
    return mixed(center_cropped(load(name, scale, size=recipe.crop * 8 // 7), recipe.crop))


def photographs(**changes: object) -> Whitened:
    """The recipe for photographs, the chapters' and your own, with the named fields changed. It takes seconds."""
    return replace(PHOTOGRAPHS, **changes)
