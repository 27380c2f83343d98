"""The package as a user imports it: names, enums, options, descriptions, kinds of exceptions."""

from __future__ import annotations

import inspect
import subprocess
import sys

import llm_datadist
import pytest
from datadist_actor import SITE
from llm_datadist import (
    BlocksCacheKey,
    Cache,
    CacheDesc,
    CacheKey,
    CacheKeyByIdAndIndex,
    DataType,
    LLMClusterInfo,
    LLMConfig,
    LLMDataDist,
    LLMException,
    LLMRole,
    LLMStatusCode,
    Memtype,
    Placement,
    RegisterMemStatus,
    Status,
)
from llm_datadist.status import code_2_status


def test_everything_of_the_cache_manager_mode_is_at_the_top() -> None:
    names = """LLMDataDist LLMConfig LlmConfig LLMRole LLMClusterInfo LLMStatusCode LLMException
        Status DataType CacheDesc CacheKey CacheKeyByIdAndIndex BlocksCacheKey Cache Placement
        RegisterMemStatus LayerSynchronizer TransferWithCacheKeyConfig CacheTask Memtype MemInfo"""
    assert set(names.split()) == set(llm_datadist.__all__)
    assert llm_datadist.LLMConfig is llm_datadist.LlmConfig


@pytest.mark.parametrize(
    "name", ["TensorDesc", "Tensor", "KvCacheManager", "KvCache", "TransferConfig"]
)
def test_version_1_and_raw_addresses_are_not_here(name: str) -> None:
    with pytest.raises(AttributeError):
        getattr(llm_datadist, name)


def test_cache_manager_is_not_exported_at_the_top() -> None:
    from llm_datadist.v2.cache_manager import CacheManager

    assert CacheManager.__name__ == "CacheManager"
    assert not hasattr(llm_datadist, "CacheManager")


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("status", "LLMException"),
        ("configs", "LLMRole"),
        ("data_type", "DataType"),
        ("v2.llm_types", "BlocksCacheKey"),
        ("v2.llm_datadist", "LLMDataDist"),
    ],
)
def test_submodules_that_people_import(module: str, name: str) -> None:
    there = __import__(f"llm_datadist.{module}", fromlist=[name])
    assert getattr(there, name) is getattr(llm_datadist, name)


@pytest.mark.parametrize(("before", "after"), [(None, "0"), ("1", "1")])
def test_import_sets_auto_use_uc_memory_if_unset(before: str | None, after: str) -> None:
    env = {"PYTHONPATH": str(SITE)} | ({} if before is None else {"AUTO_USE_UC_MEMORY": before})
    code = "import llm_datadist, os; print(os.environ['AUTO_USE_UC_MEMORY'])"
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.stdout.strip() == after


def test_roles() -> None:
    assert {role.name: role.value for role in LLMRole} == {"PROMPT": 1, "DECODER": 2, "MIX": 3}
    assert str(LLMRole.PROMPT) == "LLMRole.PROMPT"


def test_register_mem_status() -> None:
    states = {state.name: state.value for state in RegisterMemStatus}
    assert states == {"OK": 0, "PREPARING": 1, "FAILED": 2}


def test_placement_and_memtype_count_the_other_way_round() -> None:
    assert {one.name: one.value for one in Placement} == {"HOST": 0, "DEVICE": 1}
    kinds = {one.name: one.value for one in Memtype}
    assert kinds == {"MEM_TYPE_DEVICE": 0, "MEM_TYPE_HOST": 1}


def test_data_types_are_those_of_ge_and_a_string_counts_16_bytes() -> None:
    names = "FLOAT FLOAT16 INT8 INT32 UINT8 _5 INT16 UINT16 UINT32 INT64 UINT64 DOUBLE BOOL STRING"
    numbers = {f"DT_{name}": number for number, name in enumerate(names.split())}
    del numbers["DT__5"]  # a number that is not used
    assert {kind.name: kind.value for kind in DataType} == {**numbers, "DT_BF16": 27}
    assert DataType.DT_STRING.size == 16
    sizes = {kind.name: kind.size for kind in (DataType.DT_BF16, DataType.DT_INT8)}
    assert sizes == {"DT_BF16": 2, "DT_INT8": 1}
    assert all(kind.size > 0 for kind in DataType)


# By number above 0x5010B000, without the prefix; 20 to 23 are not used.
STATUS_CODES = """WAIT_PROCESS_TIMEOUT KV_CACHE_NOT_EXIST REPEAT_REQUEST REQUEST_ALREADY_COMPLETED
    PARAM_INVALID ENGINE_FINALIZED NOT_YET_LINK ALREADY_LINK LINK_FAILED UNLINK_FAILED
    NOTIFY_PROMPT_UNLINK_FAILED CLUSTER_NUM_EXCEED_LIMIT PROCESSING_LINK DEVICE_OUT_OF_MEMORY
    PREFIX_ALREADY_EXIST PREFIX_NOT_EXIST SEQ_LENOVERLIMIT NO_FREE_BLOCK BLOCKS_OUT_OF_MEMORY
    - - - - EXIST_LINK FEATURE_NOT_ENABLED TIMEOUT LINK_BUSY OUT_OF_MEMORY"""


def test_status_codes() -> None:
    numbers = {
        f"LLM_{name}": 0x5010B000 + number
        for number, name in enumerate(STATUS_CODES.split(), 1)
        if name != "-"
    }
    of_acl = {"LLM_DEVICE_MEM_ERROR", "LLM_SUSPECT_REMOTE_ERROR"}  # numbers of the ACL run-time
    others = {"LLM_SUCCESS": 0, "LLM_FAILED": 0xFFFFFFFF, "LLM_UNKNOWN_ERROR": -1}
    found = {code.name: code.value for code in LLMStatusCode if code.name not in of_acl}
    assert found == numbers | others
    assert {code.name for code in LLMStatusCode} >= of_acl
    assert str(LLMStatusCode.LLM_TIMEOUT) == "LLMStatusCode.LLM_TIMEOUT"
    assert Status(LLMStatusCode.LLM_SUCCESS).is_ok()
    assert not Status(LLMStatusCode.LLM_TIMEOUT).is_ok()


def test_an_unknown_native_code_is_llm_failed() -> None:
    assert code_2_status(4711) is LLMStatusCode.LLM_FAILED
    assert code_2_status(0x5010B01A) is LLMStatusCode.LLM_TIMEOUT


def test_the_exception_is_a_runtime_error_with_a_status_code() -> None:
    error = LLMException("x", status_code=LLMStatusCode.LLM_TIMEOUT)
    assert isinstance(error, RuntimeError)
    assert error.status_code is LLMStatusCode.LLM_TIMEOUT
    assert LLMException("x").status_code is LLMStatusCode.LLM_SUCCESS


def test_options_of_the_upstream_connector() -> None:
    config = LLMConfig()
    config.device_id = 0
    config.sync_kv_timeout = 20000
    config.enable_switch_role = True
    config.enable_cache_manager = True
    config.enable_remote_cache_accessible = True
    assert config.generate_options() == {
        "ge.exec.deviceId": "0",
        "ge.session_device_id": "0",
        "llm.SyncKvCacheWaitTime": "20000",
        "llm.EnableCacheManager": "1",
        "llm.EnableRemoteCacheAccessible": "1",
        "llm.EnableSwitchRole": "1",
        "llm.MemoryUtilization": "0.95",
    }


def test_options_never_set_are_absent_but_for_the_memory_utilization() -> None:
    assert LLMConfig().generate_options() == {"llm.MemoryUtilization": "0.95"}


def test_all_other_options() -> None:
    config = LLMConfig()
    config.ge_options = {"ge.x": "y", "ge.exec.deviceId": "merged first, so that settings win"}
    config.device_id = [0, 1]
    config.listen_ip_info = "127.0.0.1:26000"
    config.deploy_res_path = "/res"
    config.mem_pool_cfg = config.host_mem_pool_cfg = config.buf_pool_cfg = "{}"
    config.enable_cache_manager = config.enable_remote_cache_accessible = False
    config.enable_switch_role = False  # only True is an option
    config.link_total_time = 0
    config.link_retry_count = 2
    config.rdma_traffic_class = 132
    config.rdma_service_level = 4
    config.local_comm_res = ""
    config.cluster_info = '{"listen_ip_info": [{"ip": "127.0.0.1"}]}'
    config.output_max_size = 7
    config.mem_utilization = 0.5
    config.transfer_backend = "b"
    config.global_resource_config = "{}"
    assert config.generate_options() == {
        "ge.x": "y",
        "ge.exec.deviceId": "0;1",
        "ge.session_device_id": "0",
        "llm.listenIpInfo": "127.0.0.1:26000",
        "llm.deployResPath": "/res",
        "llm.MemPoolConfig": "{}",
        "llm.HostMemPoolConfig": "{}",
        "llm.BufPoolCfg": "{}",
        "llm.EnableCacheManager": "0",
        "llm.EnableRemoteCacheAccessible": "0",
        "llm.LinkTotalTime": "0",
        "llm.LinkRetryCount": "2",
        "llm.RdmaTrafficClass": "132",
        "llm.RdmaServiceLevel": "4",
        "llm.LocalCommRes": "",
        "llm.ClusterInfo": '{"listen_ip_info": [{"ip": 16777343}]}',
        "llm.OutputMaxSize": "7",
        "llm.MemoryUtilization": "0.5",
        "llm.TransferBackend": "b",
        "llm.GlobalResourceConfig": "{}",
    }


@pytest.mark.parametrize(
    ("setting", "value", "kind"),
    [
        ("enable_cache_manager", 1, TypeError),
        ("enable_remote_cache_accessible", "1", TypeError),
        ("enable_switch_role", 0, TypeError),
        ("device_id", "0", TypeError),
        ("device_id", -1, LLMException),
        ("device_id", 2**31, ValueError),
        ("sync_kv_timeout", 1.5, TypeError),
        ("sync_kv_timeout", "1s", LLMException),
        ("sync_kv_timeout", 0, LLMException),
        ("link_total_time", -1, LLMException),
        ("link_total_time", 2**32, LLMException),
        ("link_retry_count", 0, LLMException),
        ("link_retry_count", 101, LLMException),
        ("mem_utilization", 1, TypeError),
        ("mem_utilization", 1.1, LLMException),
        ("rdma_traffic_class", -1, ValueError),
        ("listen_ip_info", 1, TypeError),
    ],
)
def test_bad_settings(setting: str, value: object, kind: type[Exception]) -> None:
    with pytest.raises(kind) as raised:
        setattr(LLMConfig(), setting, value)
    if isinstance(raised.value, LLMException):
        assert raised.value.status_code is LLMStatusCode.LLM_PARAM_INVALID


@pytest.mark.parametrize(
    ("setting", "values"),
    [("link_total_time", (0, 2**32 - 1)), ("link_retry_count", (1, 100))],
)
def test_settings_up_to_their_limits(setting: str, values: tuple[int, int]) -> None:
    for value in values:
        config = LLMConfig()
        setattr(config, setting, value)
        assert str(value) in config.generate_options().values()


def test_a_timeout_of_digits_is_fine() -> None:
    config = LLMConfig()
    config.sync_kv_timeout = "300"
    assert config.generate_options()["llm.SyncKvCacheWaitTime"] == "300"


def test_cluster_info_keeps_addresses_as_little_endian_numbers() -> None:
    info = LLMClusterInfo()
    info.remote_cluster_id = 3
    info.append_local_ip_info("127.0.0.1", 1)
    info.append_remote_ip_info(16777343, 2)
    assert info.local_ip_info_list == [(0x0100007F, 1)]
    assert info.remote_ip_info_list == [(0x0100007F, 2)]
    with pytest.raises(ValueError, match="uint16"):
        info.append_remote_ip_info("127.0.0.1", 65536)
    with pytest.raises(RuntimeError, match="Can not parse ip"):
        info.append_remote_ip_info("localhost", 1)


def test_cache_desc() -> None:
    desc = CacheDesc(4, [10, 128, 2, 64], DataType.DT_BF16)
    assert (desc.num_tensors, desc.shape, desc.batch_size) == (4, [10, 128, 2, 64], 10)
    assert desc.placement is Placement.DEVICE
    assert (desc.batch_dim, desc.seq_len_dim_index, desc.kv_tensor_format) == (0, -1, None)
    assert desc.size == 10 * 128 * 2 * 64 * 2
    desc.update_dim(0, 20)
    assert desc.size == 20 * 128 * 2 * 64 * 2


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        ((1, [2], "DT_INT8"), TypeError),
        ((1, "ab", DataType.DT_INT8), TypeError),
        ((1, [2.0], DataType.DT_INT8), TypeError),
        ((-1, [2], DataType.DT_INT8), ValueError),
        ((1, [2**63], DataType.DT_INT8), ValueError),
        ((1, [2], DataType.DT_INT8, Placement.DEVICE, 1), LLMException),
        ((1, [2], DataType.DT_INT8, Placement.DEVICE, 0, 1), LLMException),
        ((1, [], DataType.DT_INT8), LLMException),
    ],
)
def test_bad_cache_desc(arguments: tuple[object, ...], kind: type[Exception]) -> None:
    with pytest.raises(kind):
        CacheDesc(*arguments)  # type: ignore[arg-type]  # wrong on purpose


def test_numbers_of_numpy_are_refused_where_ints_are_wanted() -> None:
    numpy = pytest.importorskip("numpy")
    with pytest.raises(TypeError, match="inner type"):
        CacheDesc(1, [numpy.int64(2)], DataType.DT_INT8)
    with pytest.raises(TypeError, match="num_tensors only support"):
        CacheDesc(numpy.int64(1), [2], DataType.DT_INT8)


def test_none_passes_the_check_of_its_type_and_fails_later() -> None:
    with pytest.raises(TypeError, match="NoneType"):
        CacheDesc(1, None, DataType.DT_INT8)  # type: ignore[arg-type]  # wrong on purpose
    assert CacheDesc(1, [2], None).data_type is None  # type: ignore[arg-type]  # wrong on purpose


def test_defaults_of_time_limits_of_one_sided_links() -> None:
    for call in (LLMDataDist.link_clusters, LLMDataDist.unlink_clusters):
        assert inspect.signature(call).parameters["timeout"].default == 3000
    assert inspect.signature(LLMDataDist.unlink_clusters).parameters["force"].default is False


def test_keys_by_position_by_name_and_by_the_old_name() -> None:
    assert (BlocksCacheKey(3).cluster_id, BlocksCacheKey(3).model_id) == (3, 0)
    assert BlocksCacheKey(prompt_cluster_id=3, model_id=1).prompt_cluster_id == 3
    assert BlocksCacheKey(3, 1).model_id == 1
    key = CacheKey(3, 7)
    assert (key.cluster_id, key.req_id, key.model_id, key.prefix_id) == (3, 7, 0, 2**64 - 1)
    assert CacheKeyByIdAndIndex(3, 4, 5).batch_index == 5


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda: BlocksCacheKey(), LLMException),
        (lambda: BlocksCacheKey(1, 2, 3), LLMException),
        (lambda: BlocksCacheKey(cluster_id=1, no=2), LLMException),
        (lambda: BlocksCacheKey("1"), TypeError),
        (lambda: CacheKey(1), LLMException),
        (lambda: CacheKey(1, -1), ValueError),
        (lambda: CacheKeyByIdAndIndex(-1, 0), ValueError),
        (lambda: CacheKeyByIdAndIndex(1, "0"), TypeError),  # type: ignore[arg-type]  # on purpose
    ],
)
def test_bad_keys(make: object, kind: type[Exception]) -> None:
    with pytest.raises(kind):
        make()  # type: ignore[operator]  # a list of lambdas has no better type


def test_a_cpu_cache_is_of_host_placement_and_complete() -> None:
    desc = CacheDesc(2, [4, 8], DataType.DT_INT8, Placement.HOST)
    cache = Cache.create_cpu_cache(desc, [16, 32])
    assert (cache.cache_id, cache.cache_desc, cache.tensor_addrs) == (-1, desc, [16, 32])
    assert cache.is_blocks_cache
    with pytest.raises(LLMException, match="addrs num"):
        Cache.create_cpu_cache(desc, [16])
    with pytest.raises(LLMException, match="HOST"):
        Cache.create_cpu_cache(CacheDesc(1, [4], DataType.DT_INT8), [16])


@pytest.mark.parametrize(
    ("role", "cluster_id", "kind"),
    [(1.5, 1, TypeError), (LLMRole.MIX, "1", TypeError), (LLMRole.MIX, 2**64, ValueError)],
)
def test_bad_constructor_arguments(role: object, cluster_id: object, kind: type[Exception]) -> None:
    with pytest.raises(kind):
        LLMDataDist(role, cluster_id)  # type: ignore[arg-type]  # wrong on purpose
