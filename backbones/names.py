"""The backbone names that SimpleNet's users type, and the timm (or torchvision) model behind each.

The original takes torchvision's first ImageNet weights ("tv_in1k") for most CNNs; the same tensors are named here,
since published numbers hold for them only. Any other timm name is used as it is.
"""

PIXELS = "pixels"  # no network: its one layer, "input", is the image itself

BACKBONES: dict[str, str] = {
    "alexnet": "torchvision/alexnet",
    "resnet18": "resnet18.tv_in1k",
    "resnet50": "resnet50.tv_in1k",
    "resnet101": "resnet101.tv_in1k",
    "resnext101": "resnext101_32x8d.tv_in1k",
    "resnet200": "resnet200d.ra2_in1k",
    "resnest50": "resnest50d_4s2x40d.in1k",
    "resnetv2_50_bit": "resnetv2_50x3_bit.goog_in21k_ft_in1k",
    "resnetv2_50_21ft1k": "resnetv2_50x3_bit.goog_in21k",
    "resnetv2_101_bit": "resnetv2_101x3_bit.goog_in21k_ft_in1k",
    "resnetv2_101_21ft1k": "resnetv2_101x3_bit.goog_in21k",
    "resnetv2_152_bit": "resnetv2_152x4_bit.goog_in21k_ft_in1k",
    "resnetv2_152_21ft1k": "resnetv2_152x4_bit.goog_in21k",
    "resnetv2_152_384": "resnetv2_152x2_bit.goog_teacher_in21k_ft_in1k_384",
    "vgg11": "vgg11.tv_in1k",
    "vgg19": "vgg19.tv_in1k",
    "vgg19_bn": "vgg19_bn.tv_in1k",
    "wideresnet50": "wide_resnet50_2.tv_in1k",
    "wideresnet101": "wide_resnet101_2.tv_in1k",
    "mnasnet_100": "mnasnet_100.rmsp_in1k",
    "densenet121": "densenet121.tv_in1k",
    "densenet201": "densenet201.tv_in1k",
    "inception_v4": "inception_v4.tf_in1k",
    "vit_small": "vit_small_patch16_224.augreg_in21k_ft_in1k",
    "vit_base": "vit_base_patch16_224.augreg_in21k_ft_in1k",
    "vit_large": "vit_large_patch16_224.augreg_in21k_ft_in1k",
    "vit_r50": "vit_large_r50_s32_224.augreg_in21k_ft_in1k",
    "vit_deit_base": "deit_base_patch16_224.fb_in1k",
    "vit_deit_distilled": "deit_base_distilled_patch16_224.fb_in1k",
    "vit_swin_base": "swin_base_patch4_window7_224.ms_in22k_ft_in1k",
    "vit_swin_large": "swin_large_patch4_window7_224.ms_in22k_ft_in1k",
    "efficientnet_b1": "tf_efficientnet_b1.ns_jft_in1k",
    "efficientnet_b3": "tf_efficientnet_b3.ns_jft_in1k",
    "efficientnet_b5": "tf_efficientnet_b5.ns_jft_in1k",
    "efficientnet_b7": "tf_efficientnet_b7.ns_jft_in1k",
    "efficientnetv2_m": "tf_efficientnetv2_m.in21k_ft_in1k",
    "efficientnetv2_l": "tf_efficientnetv2_l.in21k_ft_in1k",
    "efficientnet_lite0": "tf_efficientnet_lite0.in1k",
}
