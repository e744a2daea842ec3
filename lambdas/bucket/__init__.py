"""What holds rights on S3. The bucket is the record: nothing of a run is kept anywhere else.

{session_id}.zip                          the session; see versions.py and commit.py
locks/{session_id}.json                   the lease: see lease.py
runs/{run_id}/…                           the record of a run: see record.py
index/hours/…, index/sessions/…, …        empty keys, to list runs by: see listing.py
extracts/{session_id}/…                   large files of sessions, to be linked to: see extracts.py
"""
