"""Binary networks: training methods on MNIST, and layers that count bits against int8."""
