/* SPDX-License-Identifier: MIT */
/* Between the target and its tool. */
#ifndef UBD_QCOW2_TARGET_H
#define UBD_QCOW2_TARGET_H

#include "qcow2.h"
#include "tool.h"

/* The directory that the option means; NULL: no journal. */
const char *qc_journal_dir(const char *option);
/* On an open image that no request is using. [awaits] */
int qc_job_run(struct qc_image *img, struct ubd_queue *q, const struct ubd_qcow2_job *job);

#endif
