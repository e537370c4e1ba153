"""For `pytest --nbval -p tests.patient_notebooks`: waits as long for an output as for its cell, not five seconds."""


def pytest_collection_modifyitems(config, items):
    for cell in items:
        cell.output_timeout = config.getoption("nbval_cell_timeout")
