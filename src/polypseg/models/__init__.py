"""Networks, their losses, their starting weights, and the device that they are computed on."""
