"""Published weights: small files in torchvision's layout, served on the loopback."""

import hashlib
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
import torch.nn.functional as F
from small_runs import tiny
from torch import nn

from seg.models import FCN, SegNet, UNet
from seg.models.pretrained import WEIGHTS_FILES, load_imagenet, weights_url
from seg.runs import load
from seg.training import init_weights


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder, and the address that serves it; PyTorch's cache lies elsewhere and is empty."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "site"
    folder.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    thread.join()
    server.server_close()


def torchvision_like(kind: str, width: int) -> nn.Module:
    """VGG16 and AlexNet as torchvision lays them out, any width, for a fixed 7x7 or 6x6 of the last."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    channels = 3
    if kind == "alexnet":
        a, b, c, d = width, 3 * width, 6 * width, 4 * width
        layers = [
            nn.Conv2d(3, a, 11, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2),
            nn.Conv2d(a, b, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
            nn.Conv2d(b, c, 3, padding=1), nn.ReLU(), nn.Conv2d(c, d, 3, padding=1), nn.ReLU(),
            nn.Conv2d(d, d, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2),
        ]  # fmt: skip
        head = [nn.Dropout(), nn.Linear(36 * d, 64 * width), nn.ReLU(), nn.Dropout(),
                nn.Linear(64 * width, 64 * width), nn.ReLU(), nn.Linear(64 * width, 10)]  # fmt: skip
    else:
        for times in (1, 1, 0, 2, 2, 0, 4, 4, 4, 0, 8, 8, 8, 0, 8, 8, 8, 0):
            if times == 0:
                layers.append(nn.MaxPool2d(2))
                continue
            layers.append(nn.Conv2d(channels, times * width, 3, padding=1))
            channels = times * width
            if kind == "vgg16_bn":
                layers.append(nn.BatchNorm2d(channels))
                nn.init.normal_(layers[-1].running_mean)
                nn.init.uniform_(layers[-1].running_var, 0.5, 2)
                nn.init.uniform_(layers[-1].weight, 0.5, 2)
                nn.init.normal_(layers[-1].bias)
            layers.append(nn.ReLU())
        head = [nn.Linear(49 * channels, 64 * width), nn.ReLU(), nn.Dropout(),
                nn.Linear(64 * width, 64 * width), nn.ReLU(), nn.Dropout(), nn.Linear(64 * width, 10)]  # fmt: skip
    model = nn.Module()
    model.features, model.classifier = nn.Sequential(*layers), nn.Sequential(*head)
    return model.eval()


def serve(folder, model: nn.Module, name: str = "net") -> str:
    """Writes the file under the name that its hash gives, as torchvision does."""
    torch.save(model.state_dict(), folder / "raw")
    start = hashlib.sha256((folder / "raw").read_bytes()).hexdigest()[:8]
    (folder / "raw").rename(folder / f"{name}-{start}.pth")
    return f"{name}-{start}.pth"


@pytest.mark.parametrize(("kind", "norm"), [("vgg16", "none"), ("vgg16_bn", "batch")])
def test_fcn_then_computes_what_the_classifier_did_up_to_fc7(site, kind, norm):
    folder, address = site
    theirs = torchvision_like(kind, 2)
    ours = FCN(3, 5, "vgg16", width=2, norm=norm).eval()
    load_imagenet(ours, address + serve(folder, theirs))
    image = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        wanted = theirs.features(image)  # 7x7
        x = image
        for stage, pool in zip(ours.stages, ours.pools, strict=True):
            x = pool(stage(x))
        torch.testing.assert_close(x, wanted, rtol=1e-4, atol=1e-4)
        fc7 = theirs.classifier[:5](wanted.flatten(1))
        # the middle of the convolutions sees all 7x7, as the linear layers do
        torch.testing.assert_close(ours.classifier(x)[..., 3, 3], fc7, rtol=1e-4, atol=1e-4)


def test_alexnet_s_layers_are_taken_in_their_order(site):
    folder, address = site
    theirs, ours = torchvision_like("alexnet", 2), FCN(3, 5, "alexnet", width=2, norm="none").eval()
    load_imagenet(ours, address + serve(folder, theirs))
    mine = [
        m
        for part in (ours.stages, ours.classifier)
        for m in part.modules()
        if isinstance(m, nn.Conv2d)
    ]
    wanted = [m for m in theirs.modules() if isinstance(m, nn.Conv2d | nn.Linear)][:-1]
    for layer, their in zip(mine, wanted, strict=True):
        assert torch.equal(layer.weight.flatten(), their.weight.flatten())
        assert torch.equal(layer.bias, their.bias)
    # fc6 sees 6x6 px as the linear layer does: three to the left and top, two to the right and bottom
    pooled = torch.randn(1, 8, 6, 6)
    with torch.no_grad():
        torch.testing.assert_close(
            ours.classifier(pooled)[..., 3, 3], theirs.classifier[:6](pooled.flatten(1))
        )


def test_a_grey_image_is_answered_as_its_three_equal_channels(site):
    folder, address = site
    url = address + serve(folder, torchvision_like("vgg16_bn", 2))
    grey, colour = SegNet(1, 2, width=2).eval(), SegNet(3, 2, width=2).eval()
    load_imagenet(grey, url)
    load_imagenet(colour, url)
    image = torch.randn(1, 1, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(
            grey.stages[0](image),
            colour.stages[0](image.expand(-1, 3, -1, -1)),
            rtol=1e-4,
            atol=1e-5,
        )


def test_a_second_time_no_network_is_needed_and_without_one_the_remedy_is_told(site):
    folder, address = site
    url = address + serve(folder, torchvision_like("vgg16", 2))
    load_imagenet(FCN(3, 2, width=2, norm="none"), url)
    for file in folder.iterdir():
        file.unlink()
    load_imagenet(FCN(3, 2, width=2, norm="none"), url)
    with pytest.raises(ValueError, match=r"other-12345678.pth can't be downloaded .* put the file"):
        load_imagenet(FCN(3, 2, width=2, norm="none"), f"{address}other-12345678.pth")


def test_a_file_that_is_not_the_published_one_is_refused(site, tmp_path):
    folder, address = site
    name = serve(folder, torchvision_like("vgg16", 2))
    (folder / name).rename(folder / "net-00000000.pth")
    before = FCN(3, 2, width=2, norm="none")
    kept = before.stages[0][0][0].weight.clone()
    with pytest.raises(
        ValueError, match=r"invalid hash value .*; the file isn't the published one"
    ):
        load_imagenet(before, f"{address}net-00000000.pth")
    assert torch.equal(before.stages[0][0][0].weight, kept)
    assert not list((tmp_path / "cache").rglob("*.pth"))


def test_a_file_put_into_the_cache_is_hashed_too(site, tmp_path):
    _, address = site
    cache = tmp_path / "cache/hub/checkpoints"
    cache.mkdir(parents=True)
    (cache / "net-12345678.pth").write_text("junk")
    with pytest.raises(ValueError, match=r"net-12345678.pth: its SHA-256 starts with .* remove it"):
        load_imagenet(FCN(3, 2, width=2, norm="none"), f"{address}net-12345678.pth")


def test_a_file_of_too_few_layers_is_refused(site):
    folder, address = site
    url = address + serve(folder, nn.Sequential(nn.Conv2d(3, 2, 3)))
    with pytest.raises(ValueError, match="has 1 layers; this network needs 15"):
        load_imagenet(FCN(3, 2, width=2, norm="none"), url)


def test_what_does_not_fit_is_told(site):
    folder, address = site
    url = address + serve(folder, torchvision_like("vgg16", 2))
    with pytest.raises(
        ValueError, match=r"has \(2, 3, 3, 3\) where this network has \(4, 3, 3, 3\)"
    ):
        load_imagenet(FCN(3, 2, width=4, norm="none"), url)
    with pytest.raises(ValueError, match="images of 1 or 3 channels"):
        load_imagenet(FCN(5, 2, width=2, norm="none"), url)
    with pytest.raises(ValueError, match="UNet has no published weights; FCN and SegNet have"):
        load_imagenet(UNet(3, 2, width=2), url)
    with pytest.raises(ValueError, match="are for width=64; this network's is 2"):
        load_imagenet(FCN(3, 2, width=2, norm="none"))
    with pytest.raises(
        ValueError, match="published for vgg16 with norm=group; there are vgg16 with"
    ):
        load_imagenet(FCN(3, 2, width=2, norm="group"))


def test_the_addresses_are_torchvision_s():
    assert weights_url("vgg16", "none") == "https://download.pytorch.org/models/vgg16-397923af.pth"
    assert len(WEIGHTS_FILES) == 3


def test_summed_filters_are_the_answer_to_equal_channels_by_definition():
    weight, grey = torch.randn(4, 3, 3, 3), torch.randn(1, 1, 8, 8)
    torch.testing.assert_close(
        F.conv2d(grey, weight.sum(1, keepdim=True)), F.conv2d(grey.expand(-1, 3, -1, -1), weight)
    )


def test_a_run_starts_from_them_and_is_read_back_without_them(site, tmp_path, monkeypatch, capsys):
    folder, address = site
    url = address + serve(folder, torchvision_like("vgg16_bn", 4))
    monkeypatch.setattr(init_weights, "load_imagenet", partial(load_imagenet, url=url))
    _, run = tiny(tmp_path, "model=segnet", "init=imagenet", "trainer.max_epochs=1")
    assert f"init       the encoder's weights from {url}" in capsys.readouterr().out
    monkeypatch.setattr("seg.models.pretrained.download_weights", None)
    assert load.load_run(run).config["init"] == "imagenet"
