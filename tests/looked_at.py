"""What small runs would find out of their backbone again and again, found out before they are forked."""

import backbones

for layers in (("layer1", "layer2"), ("layer2", "layer1")):
    backbones.load("resnet18", "random").layer_info(layers, (32, 32))
