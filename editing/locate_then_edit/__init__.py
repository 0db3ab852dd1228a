"""Methods that find a layer and change its weights in closed form, and the three steps they share."""
