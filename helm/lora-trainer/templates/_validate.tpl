{{/* Refuse values that cannot work together, with what to set instead. */}}
{{- define "lora-trainer.validate" -}}
{{- $name := include "lora-trainer.fullname" . -}}
{{- if not (kindIs "string" (printf "name: %s" $name | fromYaml).name) -}}
{{- fail (printf "YAML does not read %s as text, so nothing can be named so: set another fullnameOverride." $name) -}}
{{- end -}}
{{- $amqp := .Values.amqp -}}
{{- if not (or $amqp.existingSecret $amqp.url .Values.rabbitmq.dev) -}}
{{- fail "Where is RabbitMQ? Set amqp.existingSecret (a Secret whose key amqp-url holds its URL) or amqp.url; for a try-out set rabbitmq.dev=true." -}}
{{- end -}}
{{- if and .Values.rabbitmq.dev (or $amqp.existingSecret $amqp.url) -}}
{{- fail "rabbitmq.dev brings a broker of its own: set either it, or amqp.existingSecret or amqp.url." -}}
{{- end -}}
{{- if and $amqp.existingSecret $amqp.url -}}
{{- fail "Set amqp.existingSecret or amqp.url, not both." -}}
{{- end -}}
{{- if not (or .Values.backend.url .Values.backend.allowedHosts) -}}
{{- fail "Where do statuses go? Set backend.url, or backend.allowedHosts where every message brings its webhook_url." -}}
{{- end -}}
{{- if and .Values.backend.existingSecret (or .Values.backend.token .Values.backend.webhookSecret) -}}
{{- fail "Set backend.existingSecret, or backend.token and backend.webhookSecret, not both." -}}
{{- end -}}
{{- if and .Values.s3.existingSecret (or .Values.s3.accessKeyId .Values.s3.secretAccessKey) -}}
{{- fail "Set s3.existingSecret, or s3.accessKeyId and s3.secretAccessKey, not both." -}}
{{- end -}}
{{- if ne (empty .Values.s3.accessKeyId) (empty .Values.s3.secretAccessKey) -}}
{{- fail "s3.accessKeyId and s3.secretAccessKey belong together: set both." -}}
{{- end -}}
{{- if and .Values.baseModel.path .Values.baseModel.image -}}
{{- fail "Set baseModel.path or baseModel.image, not both." -}}
{{- end -}}
{{- if and .Values.baseModel.offline (not .Values.baseModel.path) (not .Values.baseModel.image) (not .Values.baseModel.cache.enabled) -}}
{{- fail "baseModel.offline needs the model somewhere: baseModel.cache.enabled, baseModel.path or baseModel.image." -}}
{{- end -}}
{{- if and .Values.dispatcher.podDisruptionBudget.enabled (lt (int .Values.dispatcher.replicas) 2) -}}
{{- fail "dispatcher.podDisruptionBudget on a single replica would block node drains: set dispatcher.replicas=2." -}}
{{- end -}}
{{- if and .Values.metrics.serviceMonitor.enabled .Values.metrics.podMonitor.enabled -}}
{{- fail "Set metrics.serviceMonitor.enabled or metrics.podMonitor.enabled, not both: each dispatcher would be counted twice." -}}
{{- end -}}
{{- end -}}
