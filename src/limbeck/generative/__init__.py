"""Methods for diffusion, flows and other generators: fewer steps, smaller samplers."""
