"""The zoo sweep: convert every model of torchvision, timm and transformers, each in a process of its own."""
