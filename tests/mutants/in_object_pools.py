"""Mutants of pools in object stores: put-if-absent, merging, the local cache."""

from tests.mutants.planting import Mutant

_POOL = "tests/replication/test_object_pool.py::"
_STORE = "tests/replication/test_object_store.py::"
_RADOS = "tests/replication/test_rados_store.py::TestTheGuard::"

MUTANTS = (
    Mutant(
        "objects are put over what is there",
        "I4 single writer: two begin one group",
        "replication/object_store.py",
        'mode="create", use_multipart=False',
        'mode="overwrite", use_multipart=False',
        _STORE + "TestEveryStore::test_an_object_is_there_once_and_whole",
    ),
    Mutant(
        "another content under the name counts as put",
        "I1: a flush returns, and another's bytes are there",
        "replication/object_store.py",
        "            if self.get(key) != data:\n",
        "            if False:\n",
        _STORE + "TestTryingAgain::test_another_content_under_the_name_is_no_success",
    ),
    Mutant(
        "a put whose answer was lost fails though it was done",
        "a guest gets an error for what is durable",
        "replication/object_store.py",
        "            if self.get(key) != data:\n",
        "            if True:\n",
        _STORE + "TestTryingAgain::test_a_put_that_was_done_though_its_answer_was_lost_counts_as_done",
    ),
    Mutant(
        "a group of an earlier process is gone on in",
        "I4: what that one sent may still arrive",
        "replication/object_groups.py",
        "            if not self.is_mine or self.is_doubtful or self.is_gone or self.written_end != end:\n"
        "                return False\n"
        "            if self.uploaded_end != end:\n",
        "            if self.is_doubtful or self.is_gone:\n",
        _POOL + "TestAfterACrash::test_the_log_goes_on_in_a_group_of_its_own",
    ),
    Mutant(
        "a flush returns before its objects are there",
        "I1 durable",
        "replication/object_groups.py",
        "                upload(self, some)\n",
        "                pass\n",
        _POOL + "TestFlushing::test_a_flush_is_one_object_with_data_and_record",
    ),
    Mutant(
        "a local file that lies is merged into the pool",
        "I5: damage gets into every node's pool",
        "replication/object_merging.py",
        "    if digest is None or xxh3_64_intdigest(data) != digest:\n",
        "    if digest is None:\n",
        _POOL + "TestMerging::test_a_local_file_that_lies_is_not_merged_into_the_pool",
    ),
    Mutant(
        "objects go before what they were merged into is there",
        "I1: a crash between loses them",
        "replication/object_merging.py",
        "                group.space.store.put_new(group.key(merged), data)\n",
        "                group.space.store.delete([group.key(span) for span in run])\n"
        "                group.space.store.put_new(group.key(merged), data)\n",
        _POOL + "TestMerging::test_a_merge_that_is_cut_short_is_finished_by_the_next",
    ),
    Mutant(
        "neighbours that overlap are merged twice over",
        "I5: blocks at other positions than their own",
        "replication/object_merging.py",
        "    return data[(after - span.position) * BLOCK_BYTES :]\n",
        "    return data\n",
        "tests/replication/test_object_merging.py::test_objects_that_overlap_become_one_that_holds_each_block_once",
    ),
    Mutant(
        "the cache drops what the pool has not yet",
        "I2: acknowledged writes are lost",
        "replication/object_groups.py",
        "                parts = [each for low, high in parts for each in self.table.covered.within(low, high)]\n",
        "                pass\n",
        _POOL + "TestTheCache::test_what_the_pool_has_not_yet_is_never_dropped",
    ),
    Mutant(
        "recovery believes a local file from before",
        "P4: a node shows what the pool does not have",
        "replication/object_groups.py",
        "        gaps = (self.sure if sure else self.cached).missing(start, end)\n",
        "        gaps = self.cached.missing(start, end)\n",
        _POOL + "TestTheCache::test_recovery_believes_the_pool_and_not_a_local_file_from_before",
    ),
    Mutant(
        "a block of the cache that does not verify is not fetched again",
        "I5: EIO for what the pool has",
        "replication/object_groups.py",
        "        if not bad:\n            return False\n",
        "        if bad is not None:\n            return False\n",
        _POOL + "TestTheCache::test_a_local_disk_that_lies_is_noticed_and_mended",
    ),
    Mutant(
        "the cache has no limit",
        "a node's disk fills",
        "replication/extent_cache.py",
        "        while self.bytes > limit_bytes and tries < _TRIES_MAX:\n",
        "        while False:\n",
        "tests/replication/test_extent_cache.py::test_no_more_is_here_than_the_limit",
    ),
    Mutant(
        "a group in Ceph takes blocks after the fence",
        "I4: what a deposed owner sends changes the tail that the next one reads",
        "replication/rados_store.py",
        'attribute_is={"fenced": b""},',
        "",
        _RADOS + "test_groups_of_older_epochs_refuse_what_comes",
    ),
    Mutant(
        "a group in Ceph counts as begun though the fence went up meanwhile",
        "I4: the fence did not see that group",
        "replication/rados_store.py",
        "self._if_same(above, self._guarded(name, settled))",
        "self._if_same(above, settled)",
        _RADOS + "test_a_group_that_is_begun_while_the_fence_goes_up_is_refused_or_fenced",
    ),
    Mutant(
        "a begin in Ceph that arrived late counts without another look at the epoch",
        "I4: likewise",
        "replication/rados_store.py",
        "        self._settle(name, word)\n        if error is not None:\n            raise error\n",
        "        if error is not None:\n            raise error\n        self._settle(name, word)\n",
        _RADOS + "test_so_is_one_whose_begin_was_tried_again_and_arrived_late",
    ),
)
