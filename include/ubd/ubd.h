/* SPDX-License-Identifier: MIT */
/* All of libubd. */
#ifndef UBD_UBD_H
#define UBD_UBD_H

#include <ubd/ctrl.h>
#include <ubd/device.h>
#include <ubd/local.h>
#include <ubd/option.h>
#include <ubd/queue.h>
#include <ubd/target.h>

#ifdef __cplusplus
extern "C" {
#endif

/* "0.1.0", of the library in use. */
const char *ubd_version(void);

#ifdef __cplusplus
}
#endif

#endif
