"""Real data sets that come with scikit-learn: nothing is downloaded.

scikit-learn is imported where its data are read, since it is slow to load and most deployed nodes need none of it.
"""

import numpy as np

from tasks.data.base import TableDataset
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


class Diabetes(TableDataset):
    """Diabetes: 442 patients, 10 measurements, and how far the disease has gone a year later, from 25 to 346.

    Efron et al. 2004, doi:10.1214/009053604000000067. The label is a number: data for task=linear. Columns are in the
    units in which they were measured; sex is 1 or 2.
    """

    def table(self) -> Table:
        from sklearn.datasets import load_diabetes

        data = load_diabetes(scaled=False)
        return Table(data.data, data.target, Columns.of_numbers(data.feature_names, "progression"))


class Digits(TableDataset):
    """Handwritten digits: 1,797 images of 8 x 8 pixels with values from 0 to 16, ten classes.

    The test set of Alpaydin & Kaynak 1998, doi:10.24432/C50P49.
    """

    def table(self) -> Table:
        from sklearn.datasets import load_digits

        data = load_digits()
        classes = tuple(str(name) for name in data.target_names)
        return Table(data.data, data.target.astype(np.int64), Columns.of_numbers(data.feature_names, "digit", classes))
