"""Tables and graphs read through one door, and every figure drawn from them."""
