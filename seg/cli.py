"""stub"""
from pathlib import Path
import functools, hydra
from hydra.utils import instantiate
HERE = Path(__file__).parent
CONF = HERE / "conf" if (HERE / "conf").exists() else HERE.parent / "conf"
class UserError(ValueError): pass
def build(node, path="", **given):
    return instantiate(node, _partial_=True, _convert_="all")(**given) if given else instantiate(node, _convert_="all")
def command(config_name):
    return lambda f: hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)(f)
