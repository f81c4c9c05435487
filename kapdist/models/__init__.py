"""The networks: plain ResNets, into which `kapdist.kap.kapify` puts Kernel Average Pooling."""

from kapdist.models.resnet import ResNet, resnet10, resnet18, resnet34, resnet50, resnet101

MODELS = {
    "resnet10": resnet10,
    "resnet18": resnet18,
    "resnet34": resnet34,
    "resnet50": resnet50,
    "resnet101": resnet101,
}

__all__ = ["MODELS", "ResNet", "resnet10", "resnet18", "resnet34", "resnet50", "resnet101"]
