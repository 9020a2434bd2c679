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
        """The ranges of its published description."""
        columns = Columns.of_numbers(list(CELL_NUCLEI), "diagnosis", ("benign", "malignant"))
        return declare(columns, {name: uniform(*ends) for name, ends in CELL_NUCLEI.items()})


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
        """The ranges of its published description."""
        columns = Columns.of_numbers(list(MEASUREMENTS), "progression")
        return declare(columns, {name: uniform(*ends) for name, ends in MEASUREMENTS.items()}, uniform(25, 346))


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
    "mean radius": (6.98, 28.11),
    "mean texture": (9.71, 39.28),
    "mean perimeter": (43.79, 188.5),
    "mean area": (143.5, 2501.0),
    "mean smoothness": (0.053, 0.163),
    "mean compactness": (0.019, 0.345),
    "mean concavity": (0.0, 0.427),
    "mean concave points": (0.0, 0.201),
    "mean symmetry": (0.106, 0.304),
    "mean fractal dimension": (0.05, 0.097),
    "radius error": (0.112, 2.873),
    "texture error": (0.36, 4.885),
    "perimeter error": (0.757, 21.98),
    "area error": (6.802, 542.2),
    "smoothness error": (0.002, 0.031),
    "compactness error": (0.002, 0.135),
    "concavity error": (0.0, 0.396),
    "concave points error": (0.0, 0.053),
    "symmetry error": (0.008, 0.079),
    "fractal dimension error": (0.001, 0.03),
    "worst radius": (7.93, 36.04),
    "worst texture": (12.02, 49.54),
    "worst perimeter": (50.41, 251.2),
    "worst area": (185.2, 4254.0),
    "worst smoothness": (0.071, 0.223),
    "worst compactness": (0.027, 1.058),
    "worst concavity": (0.0, 1.252),
    "worst concave points": (0.0, 0.291),
    "worst symmetry": (0.156, 0.664),
    "worst fractal dimension": (0.055, 0.208),
}
"""The ranges in the description that comes with the data."""

MEASUREMENTS = {
    "age": (19.0, 79.0),
    "sex": (1.0, 2.0),
    "bmi": (18.0, 42.2),
    "bp": (62.0, 133.0),
    "s1": (97.0, 301.0),
    "s2": (41.6, 242.4),
    "s3": (22.0, 99.0),
    "s4": (2.0, 9.09),
    "s5": (3.25, 6.11),
    "s6": (58.0, 124.0),
}
"""Lowest and highest values that were measured."""
