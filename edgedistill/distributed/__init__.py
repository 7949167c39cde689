"""Several processes at one training, and the device that each works on."""
