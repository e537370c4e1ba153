"""ProS-GAN: a network that makes adversarial images for wanted labels in one pass, where others search for each image.

Wang et al., "Prototype-supervised Adversarial Network for Targeted Attack of Deep Hashing", CVPR 2021. Its networks are
in `networks`, their training in `training`; `attacks.search.Generated` attacks with it.
"""

from robret_lib.attacks.pros_gan.networks import Discriminator, ImageGenerator
from robret_lib.attacks.pros_gan.training import GanSchedule, train_generator

__all__ = ["Discriminator", "GanSchedule", "ImageGenerator", "train_generator"]
