"""What a person does in the browser: fill the form, watch the run, go to MLflow, compare, look at the night.

Needs Chromium (Debian: ``apt install chromium``), or its path in ``ASSAY_CHROMIUM``. Screenshots are left in
``test-artifacts``.
"""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import BrowserContext, Locator, Page, expect, sync_playwright

from tests.copies import ROOT
from tests.line.line import SMALL, Line

SERVICES = ("services.cpu_workers=1",)
SCREENSHOTS = ROOT / "test-artifacts"
NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = os.environ.get("ASSAY_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
PATIENCE_MS = 120_000

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt install chromium, or set ASSAY_CHROMIUM"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[BrowserContext]:
    """A browser that notes every request to another machine."""
    SCREENSHOTS.mkdir(exist_ok=True)
    arguments = ["--no-sandbox"] if os.getuid() == 0 else []
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        context = chromium.new_context(viewport={"width": 1440, "height": 900})
        context.set_default_timeout(PATIENCE_MS)
        expect.set_options(timeout=PATIENCE_MS)
        yield context
        chromium.close()


@pytest.fixture
def page(browser: BrowserContext) -> Iterator[Page]:
    page = browser.new_page()
    yield page
    page.close()


def shoot(page: Page, name: str) -> None:
    page.screenshot(path=SCREENSHOTS / f"{name}.png")


def field(page: Page, name: str) -> Locator:
    """The innermost part of the form with this label."""
    return page.locator(".schema-form-property", has=page.get_by_text(f"{name} (Optional)", exact=True)).last


def open_deployment(page: Page, line: Line, name: str) -> None:
    page.goto(f"{line.url}/deployments")
    # By its address: the link to the flow, which may be called the same, is drawn a moment later.
    page.locator("a[href*='/deployments/deployment/']").get_by_text(name, exact=True).click()


def open_form(page: Page, line: Line) -> None:
    open_deployment(page, line, "run-cpu")
    page.get_by_role("button", name="Run", exact=True).first.click()
    page.get_by_text("Custom run").click()
    expect(field(page, "num_epochs")).to_be_visible()


def submit_by_form(page: Page, line: Line, name: str) -> None:
    open_form(page, line)
    page.get_by_label("Run Name").or_(page.locator("input[type=text]")).first.fill(name)
    field(page, "num_epochs").locator("input").fill("40")
    field(page, "num_bootstrap").locator("input").fill("100")
    page.get_by_role("button", name="Submit").click()
    expect(page.get_by_role("button", name="View run").first).to_be_visible()
    # The page then goes to the deployment, which would undo a click on "View run" that came sooner.
    page.wait_for_url(re.compile(r"/deployments/deployment/[^/]+(\?.*)?$"))
    page.get_by_role("link", name=name, exact=True).first.click()
    expect(page.get_by_text(name).first).to_be_visible()
    expect(page.get_by_text("Task Runs", exact=True)).to_be_visible()


def test_the_form_has_every_parameter_and_refuses_a_bad_value(page: Page, line: Line) -> None:
    open_form(page, line)
    for name in ("val_fraction", "channels", "optimizer", "learning_rate", "early_stopping", "model_name", "precision"):
        expect(field(page, name)).to_be_visible()
    expect(field(page, "dropout_prob").locator("input")).to_have_value("0.25")
    expect(field(page, "dropout_prob")).to_contain_text("Probability of dropping a hidden activation.")
    optimizer = field(page, "optimizer")
    optimizer.get_by_text("sgd", exact=True).click()
    expect(optimizer).to_contain_text("momentum")
    optimizer.get_by_text("adamw", exact=True).click()
    expect(optimizer).to_contain_text("beta1")
    optimizer.scroll_into_view_if_needed()
    shoot(page, "form")
    field(page, "dropout_prob").locator("input").fill("1.5")
    page.get_by_role("button", name="Submit").click()
    expect(page.get_by_text("1.5 is greater than the maximum of 0.999").first).to_be_visible()
    assert page.url.partition("?")[0].endswith("/run")


def test_a_run_from_the_form_to_mlflow_and_back(page: Page, browser: BrowserContext, line: Line) -> None:
    submit_by_form(page, line, "from-the-form")
    expect(page.get_by_text("Completed", exact=True).first).to_be_visible()
    expect(page.get_by_text("train: epoch 1:").first).to_be_visible()
    flow_run_page = page.url.partition("?")[0]
    page.reload()
    expect(page.get_by_text("train: epoch 1:").first).to_be_visible()
    page.wait_for_timeout(1000)  # the timeline is drawn in steps
    shoot(page, "run")
    page.get_by_text("Artifacts", exact=True).first.click()
    page.get_by_role("link", name=re.compile("result")).first.click()
    expect(page.get_by_text("majority class")).to_be_visible()
    figures = page.get_by_role("main").locator("img").or_(page.locator("article img"))
    expect(figures.first).to_be_visible()
    page.wait_for_function("[...document.querySelectorAll('article img')].every(img => img.naturalWidth > 200)")
    shoot(page, "result")
    with browser.expect_page() as opened:
        page.get_by_role("link", name="The run in MLflow").click()
    mlflow = opened.value
    expect(mlflow.get_by_text("Finished").first).to_be_visible()
    shoot(mlflow, "mlflow-run")
    back = mlflow.get_by_role("link", name="this Prefect flow run")
    assert back.get_attribute("href") == flow_run_page
    mlflow.close()


def test_runs_are_compared_in_mlflow(page: Page, line: Line) -> None:
    for dropout in (0.1, 0.3, 0.5):
        done = line.copy.assay("run", "--pool", "cpu", *SMALL, "train.num_epochs=40", f"train.dropout_prob={dropout}")
        assert done.returncode == 0, done.stderr
    runs = f"{line.mlflow_url}/#/experiments/1/runs?workflowType=machine_learning"
    page.goto(runs)
    rows = page.get_by_role("checkbox", name="Press Space to toggle row selection (unchecked)")
    expect(rows.nth(2)).to_be_visible()
    expect(page.get_by_text("MLflow Assistant").first).to_be_hidden()
    selected = page.get_by_role("checkbox", name="Press Space to toggle row selection (checked)")
    for number in (1, 2, 3):
        rows.nth(0).click()  # the first that is not selected yet
        expect(selected).to_have_count(number)
    page.get_by_role("button", name="Compare").click()
    expect(page.get_by_text("Comparing 3 Runs from 1 Experiment")).to_be_visible()
    expect(page.get_by_text("Parallel Coordinates Plot")).to_be_visible()
    expect(page.locator(".js-plotly-plot .parcoords, .js-plotly-plot svg").first).to_be_visible()
    expect(page.get_by_text("train.dropout_prob").first).to_be_visible()
    page.wait_for_timeout(1000)  # the plot is drawn in steps
    shoot(page, "mlflow-parallel-coordinates")
    page.goto(f"{runs}&compareRunsMode=CHART")
    expect(
        page.get_by_text("Search metric charts").or_(page.get_by_placeholder("Search metric charts"))
    ).to_be_visible()
    page.get_by_placeholder("Search metric charts").fill("val_")
    expect(page.get_by_text("val_accuracy").first).to_be_visible()
    page.wait_for_timeout(1000)
    shoot(page, "mlflow-charts")


def test_the_nightly_run_is_planned(page: Page, line: Line) -> None:
    open_deployment(page, line, "nightly")
    expect(page.get_by_text(re.compile(f"At {line.night:%I:%M %p}")).first).to_be_visible()
    page.get_by_text("Upcoming", exact=True).click()
    # The word "Scheduled" alone would also be that of the filter above the list.
    expect(
        page.get_by_role("button", name=re.compile(f"Scheduled for .* {line.night:%I:%M:%S %p}")).first
    ).to_be_visible()
    page.wait_for_timeout(1000)  # the list is drawn in steps
    shoot(page, "nightly")


def test_a_pool_without_a_worker_is_said_on_its_page(page: Page, line: Line) -> None:
    run = line.submit(pool="gpu")
    page.goto(f"{line.url}/runs/flow-run/{run}")
    expect(page.get_by_text("WaitingForWorker").first).to_be_visible()
    page.get_by_text("Details", exact=True).first.click()
    expect(page.get_by_text(re.compile("Pool gpu has no worker")).first).to_be_visible()
    shoot(page, "waiting")


def test_no_page_reaches_another_machine(browser: BrowserContext, line: Line) -> None:
    page = browser.new_page()
    answered: set[str] = set()
    page.on("response", lambda response: answered.add(urlsplit(response.url).hostname or ""))
    pages = ("", "/deployments", "/runs", "/v2/dashboard")
    for address in (*(line.url + path for path in pages), line.mlflow_url, f"{line.mlflow_url}/#/experiments/1/runs"):
        page.goto(address)
        page.wait_for_timeout(1500)  # whatever a page asks for on its own
    page.close()
    assert answered - {""} == {"127.0.0.1"}


def test_the_server_is_known_by_both_of_its_names(page: Page, line: Line) -> None:
    page.goto(f"http://localhost:{line.prefect_port}/deployments")
    expect(page.get_by_role("link", name="run-cpu").first).to_be_visible()


def test_the_screenshots_are_there() -> None:
    names = {file.stem for file in Path(SCREENSHOTS).glob("*.png")}
    assert names >= {"form", "run", "result", "mlflow-run", "mlflow-parallel-coordinates", "mlflow-charts", "nightly"}
