"""Real data sets that come with scikit-learn: nothing is downloaded.

scikit-learn is imported where its data are read, since it is slow to load and most deployed nodes need none of it.
"""

import numpy as np

from tasks.data.base import Split, TableDataset
from tasks.data.declared import declare, uniform
from tasks.data.design import Design
from tasks.data.table import Columns, Table


class BreastCancer(TableDataset):
    """Breast cancer Wisconsin (diagnostic): 569 tumours, 30 measurements of cell nuclei, malignant or benign.

    Street et al. 1993, doi:10.1117/12.148698. Class 1, the one that coefficients, probabilities and AUC speak of, is
    malignant (212 rows): the finding a test is positive for. scikit-learn's own coding is the other way round.
    """

    def table(self) -> Table:
        from sklearn.datasets import load_breast_cancer

        data = load_breast_cancer()
        malignant = 1 - data.target.astype(np.int64)
        columns = Columns.of_numbers(data.feature_names, "diagnosis", ("benign", "malignant"))
        return Table(data.data, malignant, columns)

    def declared(self, split: Split) -> Design:
        """Usual values, as its published description has them; they are of these very rows, which are public."""
        return declare(Columns.of_numbers(list(CELL_NUCLEI), "diagnosis", ("benign", "malignant")), CELL_NUCLEI)


class Diabetes(TableDataset):
    """Diabetes: 442 patients, 10 measurements, and how far the disease has gone a year later, from 25 to 346.

    Efron et al. 2004, doi:10.1214/009053604000000067. The label is a number: data for task=linear. Columns are in the
    units in which they were measured; sex is 1 or 2.
    """

    def table(self) -> Table:
        from sklearn.datasets import load_diabetes

        data = load_diabetes(scaled=False)
        return Table(data.data, data.target, Columns.of_numbers(data.feature_names, "progression"))

    def declared(self, split: Split) -> Design:
        """Usual values, of these very rows, which are public."""
        return declare(Columns.of_numbers(list(MEASUREMENTS), "progression"), MEASUREMENTS, (150.0, 77.0))


class Digits(TableDataset):
    """Handwritten digits: 1,797 images of 8 x 8 pixels with values from 0 to 16, ten classes.

    The test set of Alpaydin & Kaynak 1998, doi:10.24432/C50P49.
    """

    def table(self) -> Table:
        from sklearn.datasets import load_digits

        data = load_digits()
        classes = tuple(str(name) for name in data.target_names)
        return Table(data.data, data.target.astype(np.int64), Columns.of_numbers(data.feature_names, "digit", classes))

    def declared(self, split: Split) -> Design:
        """A pixel counts the dark ones of 16."""
        pixels = [f"pixel_{row}_{column}" for row in range(8) for column in range(8)]
        columns = Columns.of_numbers(pixels, "digit", tuple("0123456789"))
        return declare(columns, dict.fromkeys(pixels, uniform(0, 16)))


CELL_NUCLEI = {
    "mean radius": (14, 3.5),
    "mean texture": (19, 4.3),
    "mean perimeter": (92, 24),
    "mean area": (650, 350),
    "mean smoothness": (0.096, 0.014),
    "mean compactness": (0.1, 0.053),
    "mean concavity": (0.089, 0.08),
    "mean concave points": (0.049, 0.039),
    "mean symmetry": (0.18, 0.027),
    "mean fractal dimension": (0.063, 0.0071),
    "radius error": (0.41, 0.28),
    "texture error": (1.2, 0.55),
    "perimeter error": (2.9, 2),
    "area error": (40, 45),
    "smoothness error": (0.007, 0.003),
    "compactness error": (0.025, 0.018),
    "concavity error": (0.032, 0.03),
    "concave points error": (0.012, 0.0062),
    "symmetry error": (0.021, 0.0083),
    "fractal dimension error": (0.0038, 0.0026),
    "worst radius": (16, 4.8),
    "worst texture": (26, 6.1),
    "worst perimeter": (110, 34),
    "worst area": (880, 570),
    "worst smoothness": (0.13, 0.023),
    "worst compactness": (0.25, 0.16),
    "worst concavity": (0.27, 0.21),
    "worst concave points": (0.11, 0.066),
    "worst symmetry": (0.29, 0.062),
    "worst fractal dimension": (0.084, 0.018),
}
"""Mean and standard deviation of each measurement, to two digits, as its description gives them."""

MEASUREMENTS = {
    "age": (49, 13),
    "sex": (1.5, 0.5),
    "bmi": (26, 4.4),
    "bp": (95, 14),
    "s1": (190, 35),
    "s2": (120, 30),
    "s3": (50, 13),
    "s4": (4.1, 1.3),
    "s5": (4.6, 0.52),
    "s6": (91, 11),
}
"""Mean and standard deviation of each measurement, to two digits."""
