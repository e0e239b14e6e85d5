"""The colours of all pictures: Okabe and Ito's, told apart by colour-blind eyes, and a grey for what stands behind."""

BLUE, VERMILION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
ORANGE, SKY, BLACK = "#E69F00", "#56B4E9", "#000000"
GREY = "#6b6b6b"
# In the order in which lines take them.
COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK)
