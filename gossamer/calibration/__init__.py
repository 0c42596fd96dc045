"""What samples tell about the layers of a network, and new weights in closed form from it.

Inputs of layers (`inputs`) and their second moments (`moments`), least squares for the weights of a layer
(`least_squares`, `weight_reconstruction`), blocks fitted to the layers that they replace (`block_reconstruction`), and
derivatives of the loss by the weights (`curvature`). No labels are needed except for the derivatives.
"""
